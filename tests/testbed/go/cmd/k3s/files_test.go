package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// S7: token forms, files and the refusal of another token.
func TestSecretOf(t *testing.T) {
	hash := strings.Repeat("a", 64)
	cases := []struct{ token, secret, hash string }{
		{"short", "short", ""},
		{" trimmed\n", "trimmed", ""},
		{"with::colons:inside", "with::colons:inside", ""},
		{"K10" + hash + "::server:se:cret", "se:cret", hash},
		{"K10" + hash + "::node:x", "x", hash},
		{"K10tooshort::server:x", "", "error"},
		{"K10" + hash + "::nouser", "", "error"},
		{"K10" + hash + "::abcdef.0123456789abcdef", "abcdef.0123456789abcdef", hash},
	}
	for _, c := range cases {
		secret, hash, err := secretOf(c.token)
		if c.hash == "error" {
			if err == nil {
				t.Errorf("%q was accepted", c.token)
			}
		} else if err != nil || secret != c.secret || hash != c.hash {
			t.Errorf("%q gives %q, %q, %v", c.token, secret, hash, err)
		}
	}
}

func TestServerSecret(t *testing.T) {
	d, ctx := dirs{t.TempDir()}, context.Background()
	with := func(name, value string) *settings {
		return &settings{values: map[string][]string{name: {value}}}
	}
	secret, err := serverSecret(ctx, d, with("token", "first"))
	if err != nil || secret != "first" {
		t.Fatalf("first start: %q, %v", secret, err)
	}
	file := filepath.Join(t.TempDir(), "token")
	write(t, file, "  first\n\n")
	if secret, err := serverSecret(ctx, d, with("token-file", file)); err != nil || secret != "first" {
		t.Errorf("the same token from a file: %q, %v", secret, err)
	}
	none := &settings{values: map[string][]string{}}
	fresh := dirs{t.TempDir()}
	random, err := serverSecret(ctx, fresh, none)
	if err != nil || len(random) != 32 {
		t.Fatalf("no token: %q, %v", random, err)
	}
	write(t, fresh.server("token"), secureToken(strings.Repeat("0", 64), "server", random)+"\n")
	if again, err := serverSecret(ctx, fresh, none); err != nil || again != random {
		t.Errorf("no token, second start: %q, %v", again, err)
	}
}

// S7 S16: the shared files come back with their token only, whole, and never over those of another cluster.
func TestBootstrap(t *testing.T) {
	files := map[string][]byte{}
	for _, name := range bootstrapFiles {
		files[name] = []byte("content of " + name)
	}
	value, err := encryptBootstrap("right", files)
	if err != nil || strings.Contains(value, "content") {
		t.Fatalf("%q, %v", value, err)
	}
	if _, err := decryptBootstrap("wrong", value); !errors.Is(err, errOtherToken) {
		t.Errorf("another token: %v", err)
	}
	back, err := decryptBootstrap("right", value)
	if err != nil {
		t.Fatal(err)
	}
	d := dirs{t.TempDir()}
	for range 2 { // the second time they are there already
		if err := d.writeBootstrap(back); err != nil {
			t.Error(err)
		}
	}
	files["tls/server-ca.key"] = []byte("of another cluster")
	if err := d.writeBootstrap(files); err == nil || !strings.Contains(err.Error(), "newer than datastore") {
		t.Errorf("files of another cluster: %v", err)
	}
	delete(back, "tls/service.key")
	if err := (dirs{t.TempDir()}).writeBootstrap(back); err == nil {
		t.Error("incomplete data were written")
	}
}

func TestTokenFileIsWaitedFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "later")
	cfg := &settings{values: map[string][]string{"token-file": {path}}}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	time.AfterFunc(200*time.Millisecond, func() { _ = os.WriteFile(path, []byte("late\n"), 0o600) })
	if token, err := givenToken(ctx, cfg, "token"); err != nil || token != "late" {
		t.Errorf("token is %q, %v", token, err)
	}
}

func TestPKI(t *testing.T) {
	d := dirs{t.TempDir()}
	make := func(hosts ...string) {
		t.Helper()
		if err := ensurePKI(d, "h1", hosts, []string{"h1", "10.0.0.1"}); err != nil {
			t.Fatal(err)
		}
	}
	read := func(path string) string {
		t.Helper()
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	make("localhost", "127.0.0.1")
	ca, api, admin := read(d.tls("server-ca.crt")), read(d.tls("serving-kube-apiserver.crt")), read(d.tls("client-admin.crt"))
	make("localhost", "127.0.0.1")
	if read(d.tls("serving-kube-apiserver.crt")) != api {
		t.Error("an unchanged certificate was made anew")
	}
	make("localhost", "127.0.0.1", "api.example", "192.0.2.7")
	cert, err := parseCert([]byte(read(d.tls("serving-kube-apiserver.crt"))))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"api.example", "192.0.2.7", "localhost"} {
		if err := cert.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	if read(d.tls("server-ca.crt")) != ca || read(d.tls("client-admin.crt")) != admin {
		t.Error("a new name changed more than the certificate it is for")
	}
	for path, want := range map[string]os.FileMode{d.tls(): 0o700, d.tls("client-admin.key"): 0o600, d.tls("service.key"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
}

// S20: which files are manifests, what they are called and what `disable` means.
func TestManifestNames(t *testing.T) {
	for name, want := range map[string]bool{
		"a.yaml": true, "a.b.yml": true, "a.JSON": true, ".a.yaml": false, "a.txt": false, "a.yaml.skip": false, "yaml": false,
	} {
		if isManifest(name) != want {
			t.Errorf("isManifest(%q) is %v", name, !want)
		}
	}
	for path, want := range map[string]string{"/m/a.yaml": "a", "/m/a.b.yaml": "a", "/m/sub/c-d.json": "c-d"} {
		if got := addonName(path); got != want {
			t.Errorf("addonName(%q) is %q, want %q", path, got, want)
		}
	}
	disabled := map[string]bool{"coredns": true, "metrics-server": true}
	for path, want := range map[string]bool{
		"/m/coredns.yaml": true, "/m/coredns.extra.yaml": false, "/m/metrics-server/a.yaml": true, "/m/other.yaml": false,
	} {
		if isDisabled("/m", path, disabled) != want {
			t.Errorf("isDisabled(%q) is %v", path, !want)
		}
	}
}

func TestParseObjects(t *testing.T) {
	objects, err := parseObjects([]byte("# only a comment\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n" +
		"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: b}}\n- {apiVersion: v1, kind: Secret, metadata: {name: c}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, object := range objects {
		names = append(names, object.GetName())
	}
	if want := []string{"a", "b", "c"}; !reflect.DeepEqual(names, want) {
		t.Errorf("objects are %v, want %v", names, want)
	}
	gvk, ok := parseKind(kindsOf(objects[1:2]))
	if !ok || gvk != objects[1].GroupVersionKind() {
		t.Errorf("kind came back as %v", gvk)
	}
	if _, err := parseObjects([]byte("a: [")); err == nil {
		t.Error("broken YAML was accepted")
	}
}

func TestPackagedManifestsParse(t *testing.T) {
	unpacked := t.TempDir()
	n := &node{network: network{ClusterDNS: "10.43.0.10", Domain: "cluster.local"}, dirs: dirs{t.TempDir()}, cfg: &settings{},
		disabled: map[string]bool{"local-storage": true}, children: &children{bin: filepath.Join(unpacked, "bin")}}
	kinds := filepath.Join(unpacked, "manifests", definitions)
	if err := os.MkdirAll(filepath.Dir(kinds), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, kinds, "kind: CustomResourceDefinition\napiVersion: apiextensions.k8s.io/v1\nmetadata: {name: x}\n")
	folder := filepath.Join(t.TempDir(), "manifests")
	if err := n.stagePackaged(folder); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(folder, "coredns.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseObjects(raw); err != nil || strings.Contains(string(raw), "%{") {
		t.Errorf("coredns.yaml: %v, or a variable is left", err)
	}
	raw, err = os.ReadFile(filepath.Join(folder, "traefik.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if objects, err := parseObjects(raw); err != nil || len(objects) != 2 {
		t.Errorf("traefik.yaml: %d objects, %v", len(objects), err)
	}
	if fileExists(filepath.Join(folder, "local-storage.yaml")) {
		t.Error("a disabled component was written")
	}
}

// S21: size AND time must differ; a new name counts; a removed one is forgotten.
func TestChangedImages(t *testing.T) {
	old, later := time.Unix(100, 0), time.Unix(200, 0)
	before := map[string]seen{"same": {1, old}, "size": {1, old}, "time": {1, old}, "both": {1, old}, "older": {1, later}, "gone": {1, old}}
	now := map[string]seen{"same": {1, old}, "size": {2, old}, "time": {1, later}, "both": {2, later}, "older": {2, old}, "new": {1, old}}
	if got, want := changed(before, now), []string{"both", "new"}; !reflect.DeepEqual(got, want) {
		t.Errorf("changed are %v, want %v", got, want)
	}
}

func TestTaints(t *testing.T) {
	got, err := taints([]string{"a=b:NoSchedule", "only:NoExecute"})
	want := []map[string]string{{"key": "a", "value": "b", "effect": "NoSchedule"}, {"key": "only", "value": "", "effect": "NoExecute"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("taints are %v, %v", got, err)
	}
	if _, err := taints([]string{"a=b"}); err == nil {
		t.Error("a taint without effect was accepted")
	}
}

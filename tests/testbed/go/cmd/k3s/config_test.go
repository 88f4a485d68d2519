package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// S3 and S4: where values come from and which one wins.
func TestLoad(t *testing.T) {
	cases := []struct {
		name    string
		main    string            // config.yaml; "-" for no file
		dropIns map[string]string // below config.yaml.d
		env     map[string]string
		args    []string
		role    string // server unless given
		want    map[string][]string
		warns   []string
		fails   string // substring of the error
	}{
		{name: "no file at all", main: "-", want: map[string][]string{}},
		{name: "file", main: "token: boop\nnode-label: [foo=bar, bar=baz]\n",
			want: map[string][]string{"token": {"boop"}, "node-label": {"foo=bar", "bar=baz"}}},
		{name: "last value wins, drop-ins in name order", main: "token: a\n",
			dropIns: map[string]string{"20.yaml": "token: c\n", "10.yml": "token: b\n", "30.txt": "token: d\n"},
			want:    map[string][]string{"token": {"c"}}},
		{name: "a drop-in without the main file", main: "-", dropIns: map[string]string{"a.yaml": "token: b\n"},
			want: map[string][]string{"token": {"b"}}},
		{name: "plus appends, and a later file without it replaces", main: "node-label: [a=1]\nnode-taint: [x=y:NoExecute]\n",
			dropIns: map[string]string{"1.yaml": "node-label+: [b=2]\nnode-taint+: [z=w:NoSchedule]\n", "2.yaml": "node-label: [c=3]\n"},
			want:    map[string][]string{"node-label": {"c=3"}, "node-taint": {"x=y:NoExecute", "z=w:NoSchedule"}}},
		{name: "plus makes a list of two strings, the last of which counts", main: "token: a\n",
			dropIns: map[string]string{"1.yaml": "token+: b\n"}, want: map[string][]string{"token": {"b"}}},
		{name: "command line wins, lists too", main: "node-label: [a=1]\ntoken: file\n", env: map[string]string{"K3S_TOKEN": "env"},
			args: []string{"--node-label", "b=2", "--token=args"},
			want: map[string][]string{"node-label": {"b=2"}, "token": {"args"}}},
		{name: "file before environment", main: "token: file\n", env: map[string]string{"K3S_TOKEN": "env", "K3S_NODE_NAME": "n"},
			want: map[string][]string{"token": {"file"}, "node-name": {"n"}}},
		{name: "YAML 1.1 booleans", main: "disable-kube-proxy: on\nembedded-registry: no\n",
			want: map[string][]string{"disable-kube-proxy": {"true"}, "embedded-registry": {"false"}}},
		{name: "a token may look like a boolean", main: "token: y\n", want: map[string][]string{"token": {"true"}}},
		{name: "an unquoted mode is an octal number", main: "write-kubeconfig-mode: 0644\n",
			want: map[string][]string{"write-kubeconfig-mode": {"420"}}},
		{name: "a quoted mode is text", main: "write-kubeconfig-mode: \"0644\"\n",
			want: map[string][]string{"write-kubeconfig-mode": {"0644"}}},
		{name: "short keys", main: "t: x\n", want: map[string][]string{"token": {"x"}}},
		{name: "a server drops unknown keys", main: "tokn: x\ntoken: z\n", want: map[string][]string{"token": {"z"}},
			warns: []string{"Unknown flag --tokn found in config.yaml, skipping"}},
		{name: "an agent dies of unknown keys", role: "agent", main: "tokn: x\n", fails: "flag provided but not defined: -tokn"},
		{name: "an agent dies of server keys", role: "agent", main: "disable-kube-proxy: true\n",
			fails: "flag provided but not defined: -disable-kube-proxy"},
		{name: "unknown arguments are never dropped", main: "-", args: []string{"--tokn=x"},
			fails: "flag provided but not defined: -tokn"},
		{name: "broken YAML", main: "token: [\n", fails: "yaml"},
		{name: "no mapping", main: "- token\n", fails: "yaml"},
		{name: "null is no boolean", main: "disable-kube-proxy:\n", fails: "parse error"},
		{name: "text is no number", main: "https-listen-port: six\n", fails: "parse error"},
		{name: "text in the environment is no boolean", main: "-", env: map[string]string{"K3S_CLUSTER_INIT": "maybe"},
			fails: "K3S_CLUSTER_INIT"},
		{name: "a chosen file must exist", main: "-", args: []string{"--config", "/does/not/exist"}, fails: "/does/not/exist"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.yaml")
			if c.main != "-" {
				write(t, path, c.main)
			}
			for name, content := range c.dropIns {
				write(t, filepath.Join(path+".d", name), content)
			}
			env := map[string]string{}
			if c.main != "-" || len(c.dropIns) > 0 {
				env["K3S_CONFIG_FILE"] = path
			}
			for name, value := range c.env {
				env[name] = value
			}
			if c.role == "" {
				c.role = "server"
			}
			got, err := load(c.role, c.args, func(name string) string { return env[name] })
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Fatalf("error is %v, want one with %q", err, c.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			delete(got.values, "config") // how the test names its file
			if !reflect.DeepEqual(got.values, c.want) {
				t.Errorf("values are %v, want %v", got.values, c.want)
			}
			if !reflect.DeepEqual(got.warnings, c.warns) {
				t.Errorf("warnings are %v, want %v", got.warnings, c.warns)
			}
		})
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestListsSplitAtCommas(t *testing.T) {
	s := &settings{values: map[string][]string{
		"disable": {"traefik, servicelb", "ccm"}, "kubelet-arg": {"node-labels=a=1,b=2"},
	}}
	if got, want := s.list("disable"), []string{"traefik", "servicelb", "ccm"}; !reflect.DeepEqual(got, want) {
		t.Errorf("disable is %q, want %q", got, want)
	}
	if got, want := s.list("kubelet-arg"), []string{"node-labels=a=1,b=2"}; !reflect.DeepEqual(got, want) {
		t.Errorf("kubelet-arg is %q, want %q", got, want)
	}
}

func TestWithoutEffect(t *testing.T) {
	s := &settings{values: map[string][]string{
		"embedded-registry": {"true"}, "selinux": {"false"}, "disable-network-policy": {"true"},
		"datastore-endpoint": {"postgres://x"}, "token": {"x"},
	}}
	report, refuse := s.withoutEffect()
	if want := []string{"embedded-registry"}; !reflect.DeepEqual(report, want) {
		t.Errorf("reported %v, want %v", report, want)
	}
	if want := []string{"datastore-endpoint"}; !reflect.DeepEqual(refuse, want) {
		t.Errorf("refused %v, want %v", refuse, want)
	}
}

func TestKeysAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range keys {
		for _, name := range []string{k.name, k.short} {
			if name != "" && seen[name] {
				t.Errorf("key %q is there twice", name)
			}
			seen[name] = true
		}
	}
}

func TestArguments(t *testing.T) {
	got := arguments([]string{"profiling=false", "v=0"}, []string{"v=2", "--feature-gates=A=true", "feature-gates=B=true"})
	want := []string{"--profiling=false", "--v=2", "--feature-gates=A=true", "--feature-gates=B=true"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("arguments are %q, want %q", got, want)
	}
}

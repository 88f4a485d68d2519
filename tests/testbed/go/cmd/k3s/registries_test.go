package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// S22: mirrors, endpoints, password and authority reach containerd's own files; what has no effect is refused.
func TestRegistries(t *testing.T) {
	n := &node{dirs: dirs{t.TempDir()}}
	file := filepath.Join(t.TempDir(), "registries.yaml")
	write(t, file, `
mirrors:
  docker.io: {endpoint: ["https://mirror.test:5000", "https://second.test/v2/proxy"]}
  "*": {endpoint: ["https://mirror.test:5000"]}
configs:
  mirror.test:5000: {auth: {username: u, password: p}, tls: {ca_file: /ca.crt}}
  own.test: {tls: {cert_file: /c, key_file: /k, insecure_skip_verify: true}}
`)
	if err := n.writeRegistries(file); err != nil {
		t.Fatal(err)
	}
	for name, lines := range map[string][]string{
		"docker.io": {`server = "https://registry-1.docker.io"`, "[host.\"https://mirror.test:5000\"]\n" +
			"capabilities = [\"pull\", \"resolve\"]\nca = [\"/ca.crt\"]\n[host.\"https://mirror.test:5000\".header]\nAuthorization = \"Basic dTpw\"\n" +
			"[host.\"https://second.test/v2/proxy\"]\ncapabilities = [\"pull\", \"resolve\"]\noverride_path = true\n"},
		"_default": {`[host."https://mirror.test:5000"]`},
		"own.test": {"server = \"https://own.test\"\nclient = [[\"/c\", \"/k\"]]\nskip_verify = true\n"},
	} {
		path := filepath.Join(n.registriesDir(), name, "hosts.toml")
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range lines {
			if !strings.Contains(string(raw), line) {
				t.Errorf("%s lacks %q:\n%s", name, line, raw)
			}
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", name, info.Mode(), err)
		}
	}
	write(t, file, "mirrors: {docker.io: {rewrite: {a: b}}}\n")
	if err := n.writeRegistries(file); err == nil || !strings.Contains(err.Error(), "stand-in") {
		t.Errorf("rewrite: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := n.writeRegistries(file); err != nil || fileExists(n.registriesDir()) {
		t.Errorf("the file is gone: %v, and its folders stay", err)
	}
}

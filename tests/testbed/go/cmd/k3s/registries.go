package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

const registriesFile = "/etc/rancher/k3s/registries.yaml"

// registries is registries.yaml (contract §3). What is not named here is refused, so that no setting goes nowhere.
type registries struct {
	Mirrors map[string]struct {
		Endpoint []string `json:"endpoint"`
	} `json:"mirrors"`
	Configs map[string]struct {
		Auth struct {
			Username string `json:"username"`
			Password string `json:"password"`
			Auth     string `json:"auth"` // both in base64, with a colon between
		} `json:"auth"`
		TLS struct {
			CAFile   string `json:"ca_file"`
			CertFile string `json:"cert_file"`
			KeyFile  string `json:"key_file"`
			Insecure bool   `json:"insecure_skip_verify"`
		} `json:"tls"`
	} `json:"configs"`
}

// writeRegistries turns the file into containerd's own, one folder a registry, anew at every start.
func (n *node) writeRegistries(file string) error {
	folder := n.registriesDir()
	if err := os.RemoveAll(folder); err != nil {
		return err
	}
	raw, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var r registries
	if err := yaml.UnmarshalStrict(raw, &r); err != nil {
		return wrapf(err, "%s has what this stand-in does not know (%s)", file, banner)
	}
	for host := range r.Configs {
		if _, mirrored := r.Mirrors[host]; !mirrored && host != "*" {
			if err := writeHosts(folder, host, r.hosts(host, nil)); err != nil {
				return err
			}
		}
	}
	for host, mirror := range r.Mirrors {
		if err := writeHosts(folder, host, r.hosts(host, mirror.Endpoint)); err != nil {
			return err
		}
	}
	return nil
}

func (n *node) registriesDir() string { return n.dirs.agent("etc", "containerd", "certs.d") }

func writeHosts(folder, host, content string) error {
	name := host
	if host == "*" {
		name = "_default"
	}
	return writeFile(filepath.Join(folder, name, "hosts.toml"), []byte(content), 0o600)
}

// hosts is containerd's hosts.toml of one registry: the mirrors in their order, then the registry itself.
func (r registries) hosts(host string, endpoints []string) string {
	out := "# Written by the k3s stand-in at every start.\n"
	if host != "*" {
		address := host
		if host == "docker.io" {
			address = "registry-1.docker.io"
		}
		out += fmt.Sprintf("server = %q\n", "https://"+address)
		out += r.access("", address)
	}
	for _, endpoint := range endpoints {
		if !strings.Contains(endpoint, "://") {
			endpoint = "https://" + endpoint
		}
		at, err := url.Parse(endpoint)
		if err != nil {
			continue // containerd would not know it either
		}
		out += fmt.Sprintf("[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", endpoint)
		if at.Path != "" && at.Path != "/" {
			out += "override_path = true\n"
		}
		out += r.access(fmt.Sprintf("host.%q.", endpoint), at.Host)
	}
	return out
}

// access gives the lines on authority, client certificate and password for an address.
func (r registries) access(table, address string) string {
	config, ok := r.Configs[address]
	if !ok {
		config = r.Configs["*"]
	}
	out := ""
	if config.TLS.CAFile != "" {
		out += fmt.Sprintf("ca = [%q]\n", config.TLS.CAFile)
	}
	if config.TLS.CertFile != "" {
		out += fmt.Sprintf("client = [[%q, %q]]\n", config.TLS.CertFile, config.TLS.KeyFile)
	}
	if config.TLS.Insecure {
		out += "skip_verify = true\n"
	}
	secret := config.Auth.Auth
	if config.Auth.Username != "" {
		secret = base64.StdEncoding.EncodeToString([]byte(config.Auth.Username + ":" + config.Auth.Password))
	}
	if secret != "" {
		out += fmt.Sprintf("[%sheader]\nAuthorization = %q\n", table, "Basic "+secret)
	}
	return out
}

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
)

const (
	headerName     = "k3s-Node-Name"
	headerPassword = "k3s-Node-Password"
	headerIP       = "k3s-Node-IP"
)

var (
	bootstrapID    = regexp.MustCompile(`^[a-z0-9]{6}$`)
	bootstrapToken = regexp.MustCompile(`^([a-z0-9]{6})\.([a-z0-9]{16})$`)
)

var errNotAuthorized = errors.New("not authorized")

// server is a supervisor as a joining node sees it: its certificate checked, with the token's credentials.
type server struct {
	url          string
	client       *http.Client
	ca           []byte
	user, secret string
	headers      map[string]string
}

// reach fetches the cluster's authority, compares it with the hash in the token if there is one, and from then on trusts
// nothing else. A bootstrap token is a user of its own; any other token is the secret of the user given.
func reach(ctx context.Context, url, token, user string) (*server, error) {
	s := &server{url: strings.TrimSuffix(url, "/"), user: user, headers: map[string]string{}}
	secret, hash, err := secretOf(token)
	if err != nil {
		return nil, err
	}
	s.secret = secret
	if parts := bootstrapToken.FindStringSubmatch(secret); parts != nil {
		s.user, s.secret = parts[1], parts[2]
	}
	s.client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true, //nolint:gosec // this is how the authority is had
	}}
	if s.ca, err = s.call(ctx, http.MethodGet, "/cacerts", nil); err != nil {
		return nil, fmt.Errorf("failed to get CA certs: %w", err)
	}
	if hash == "" {
		logrus.Warn("Cluster CA certificate is not trusted by the host CA bundle, but the token does not include a CA hash. " +
			"Use the full token from the server's node-token file to enable Cluster CA validation.")
	} else if got := caHash(s.ca); got != hash {
		return nil, fmt.Errorf("token CA hash does not match the Cluster CA certificate hash: %s != %s", hash, got)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(s.ca) {
		return nil, fmt.Errorf("%s/cacerts holds no certificate", s.url)
	}
	s.client.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, IdleConnTimeout: time.Minute}
	return s, nil
}

// call gives the body of an answer, or what the server said was wrong.
func (s *server) call(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, s.url+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.SetBasicAuth(s.user, s.secret)
	if path == "/cacerts" {
		request.Header.Del("Authorization") // whoever this is has not shown yet that it may hear the secret
	}
	for name, value := range s.headers {
		request.Header.Set(name, value)
	}
	response, err := s.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	said, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return nil, err
	case response.StatusCode == http.StatusUnauthorized:
		return nil, fmt.Errorf("%s%s: %w", s.url, path, errNotAuthorized)
	case response.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s%s: %s: %s", s.url, path, response.Status, strings.TrimSpace(string(said)))
	}
	return said, nil
}

func (s *server) get(ctx context.Context, path string, into any) error {
	raw, err := s.call(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	return wrapf(json.Unmarshal(raw, into), "%s%s", s.url, path)
}

// certify has a certificate issued for the key at path, which is made when there is none and never leaves this host.
func (s *server) certify(ctx context.Context, path, from string) error {
	key, err := readKey(path + ".key")
	if errors.Is(err, os.ErrNotExist) {
		key, err = newKey(path + ".key")
	}
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	request := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	cert, err := s.call(ctx, http.MethodPost, "/v1-k3s/"+from, request)
	if err != nil {
		return err
	}
	if _, err := parseCert(cert); err != nil {
		return wrapf(err, "%s", from)
	}
	return writeFile(path+".crt", cert, 0o644)
}

// offer is what a server tells of its cluster.
type offer struct {
	Network  network
	Critical map[string]string // values that must be equal on all servers
}

// critical gives the configuration in which servers must not differ (contract §2).
func (n *node) critical() map[string]string {
	out := map[string]string{
		"cluster-cidr": n.ClusterCIDR, "service-cidr": n.ServiceCIDR, "cluster-dns": n.ClusterDNS, "cluster-domain": n.Domain,
		"flannel-backend":    n.Backend,
		"disable=servicelb":  fmt.Sprint(n.disabled["servicelb"]),
		"agent-token":        mac(n.serverSecret, n.agentSecret), // whoever asks knows the first
		"disable-kube-proxy": fmt.Sprint(n.NoKubeProxy),
	}
	for _, name := range []string{"disable-cloud-controller", "disable-helm-controller", "disable-network-policy", "embedded-registry",
		"flannel-external-ip", "flannel-ipv6-masq", "secrets-encryption"} {
		out[name] = fmt.Sprint(n.cfg.on(name))
	}
	for _, name := range []string{"egress-selector-mode", "secrets-encryption-provider"} {
		out[name] = n.cfg.text(name, "")
	}
	return out
}

// joinServers takes from another server what all of them share. A server that cannot join ends, where an agent waits.
func (n *node) joinServers(ctx context.Context) error {
	token, err := givenToken(ctx, n.cfg, "token")
	if err != nil {
		return err
	}
	if n.via, err = reach(ctx, n.cfg.text("server", ""), token, "server"); err != nil {
		return err
	}
	var theirs offer
	if err := n.via.get(ctx, "/v1-k3s/config", &theirs); err != nil {
		return err
	}
	for name, value := range n.critical() {
		if theirs.Critical[name] != value {
			return fmt.Errorf("failed to validate server configuration: critical configuration value mismatch between servers: %s", name)
		}
	}
	var files map[string][]byte
	if err := n.via.get(ctx, "/v1-k3s/server-bootstrap", &files); err != nil {
		return err
	}
	return n.dirs.writeBootstrap(files)
}

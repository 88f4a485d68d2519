package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	day        = 24 * time.Hour
	caLife     = 3650 * day
	leafLife   = 365 * day
	renewUnder = 120 * day // k3s renews at start what has less than this left
)

// authority is a certificate authority on disk.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// leaf describes a certificate that the server issues to one of its own parts.
type leaf struct {
	path  string // without .crt and .key
	ca    string
	name  string   // common name
	org   []string // groups
	hosts []string // host names and addresses; none: a client certificate
	both  bool     // with hosts: for a client too
}

// ensurePKI makes the authorities and certificates of contract §3 under server/tls and agent. What exists is
// kept, unless it expires soon, lacks a name that is now asked for, or comes from another authority.
func ensurePKI(d dirs, node string, apiHosts, hosts []string) error {
	if err := os.MkdirAll(d.tls("etcd"), 0o700); err != nil {
		return err
	}
	cas := map[string]*authority{}
	for _, name := range []string{"server-ca", "client-ca", "request-header-ca", "etcd/server-ca", "etcd/peer-ca"} {
		ca, err := ensureCA(d.tls(name), name)
		if err != nil {
			return wrapf(err, "%s", d.tls(name))
		}
		cas[name] = ca
	}
	masters := []string{"system:masters"}
	leafs := []leaf{
		{path: d.tls("client-admin"), ca: "client-ca", name: "system:admin", org: masters},
		{path: d.tls("client-kube-apiserver"), ca: "client-ca", name: "system:apiserver", org: masters},
		{path: d.tls("client-controller"), ca: "client-ca", name: "system:kube-controller-manager"},
		{path: d.tls("client-scheduler"), ca: "client-ca", name: "system:kube-scheduler"},
		{path: d.tls("client-kube-proxy"), ca: "client-ca", name: "system:kube-proxy"},
		{path: d.tls("client-k3s-controller"), ca: "client-ca", name: "system:k3s-controller"},
		{path: d.tls("client-auth-proxy"), ca: "request-header-ca", name: "system:auth-proxy"},
		{path: d.tls("serving-kube-apiserver"), ca: "server-ca", name: "kube-apiserver", hosts: apiHosts},
		{path: d.tls("etcd/server-client"), ca: "etcd/server-ca", name: "etcd-server", hosts: hosts, both: true},
		{path: d.tls("etcd/peer-server-client"), ca: "etcd/peer-ca", name: "etcd-peer", hosts: hosts, both: true},
		{path: d.tls("etcd/client"), ca: "etcd/server-ca", name: "etcd-client"},
		{path: d.agent("client-kubelet"), ca: "client-ca", name: "system:node:" + node, org: []string{"system:nodes"}},
		{path: d.agent("serving-kubelet"), ca: "server-ca", name: node, hosts: hosts},
		{path: d.agent("client-kube-proxy"), ca: "client-ca", name: "system:kube-proxy"},
	}
	for _, l := range leafs {
		if err := ensureLeaf(l, cas[l.ca]); err != nil {
			return wrapf(err, "%s", l.path)
		}
	}
	for _, name := range []string{"client-ca.crt", "server-ca.crt"} {
		raw, err := os.ReadFile(d.tls(name))
		if err != nil {
			return err
		}
		if err := writeFile(d.agent(name), raw, 0o644); err != nil {
			return err
		}
	}
	if fileExists(d.tls("service.key")) {
		return nil
	}
	_, err := newKey(d.tls("service.key")) // signs service account tokens
	return err
}

func ensureCA(path, name string) (*authority, error) {
	raw, err := os.ReadFile(path + ".crt")
	if errors.Is(err, os.ErrNotExist) {
		return newCA(path, name)
	}
	if err != nil {
		return nil, err
	}
	cert, err := parseCert(raw)
	if err != nil {
		return nil, err
	}
	key, err := readKey(path + ".key")
	return &authority{cert, key}, err
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM key", path)
	}
	return x509.ParseECPrivateKey(block.Bytes)
}

func newCA(path, name string) (*authority, error) {
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: fmt.Sprintf("k3s-%s@%d", filepath.Base(name), now.Unix())},
		NotBefore:             now.Add(-time.Minute),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	key, err := newKey(path + ".key")
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if err := writeFile(path+".crt", pemOf(der), 0o644); err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{cert, key}, err
}

func ensureLeaf(l leaf, ca *authority) error {
	if raw, err := os.ReadFile(l.path + ".crt"); err == nil && fileExists(l.path+".key") && stillGood(raw, l, ca) {
		return nil
	}
	key, err := newKey(l.path + ".key")
	if err != nil {
		return err
	}
	cert, err := sign(l, ca, key.Public())
	if err != nil {
		return err
	}
	return writeFile(l.path+".crt", cert, 0o644)
}

// sign issues the certificate, followed by its authority's.
func sign(l leaf, ca *authority, public crypto.PublicKey) ([]byte, error) {
	now := time.Now()
	usage := x509.ExtKeyUsageClientAuth
	template := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: l.name, Organization: l.org},
		NotBefore:    now.Add(-time.Minute),
		NotAfter:     now.Add(leafLife),
		KeyUsage:     x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
	}
	for _, host := range l.hosts {
		usage = x509.ExtKeyUsageServerAuth
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	template.ExtKeyUsage = []x509.ExtKeyUsage{usage}
	if l.both {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, public, ca.key)
	if err != nil {
		return nil, err
	}
	return append(pemOf(der), pemOf(ca.cert.Raw)...), nil
}

func stillGood(raw []byte, l leaf, ca *authority) bool {
	cert, err := parseCert(raw)
	if err != nil || time.Until(cert.NotAfter) < renewUnder || cert.CheckSignatureFrom(ca.cert) != nil {
		return false
	}
	if cert.Subject.CommonName != l.name {
		return false
	}
	for _, host := range l.hosts {
		ip := net.ParseIP(host)
		known := slices.Contains(cert.DNSNames, host) || slices.ContainsFunc(cert.IPAddresses, ip.Equal)
		if !known {
			return false
		}
	}
	return true
}

// newKey writes the key before its certificate, so that a crash between the two leaves a pair that is made anew.
func newKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writeFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

func parseCert(raw []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, errors.New("no PEM certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func serial() *big.Int {
	raw := make([]byte, 16)
	rand.Read(raw) //nolint:errcheck // crypto/rand ends the program rather than fail
	return new(big.Int).SetBytes(bytes.TrimLeft(raw, "\x00"))
}

package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiserver "k8s.io/apiserver/pkg/apis/apiserver/v1"
)

// Secrets at rest are encrypted by kube-apiserver itself, with the EncryptionConfiguration that is written here.

const (
	encryptionConfig = "cred/encryption-config.json"
	encryptionState  = "cred/encryption-state.json"
	reencryptDone    = "reencrypt_finished"
)

// encryptionStatus has the keys of `k3s secrets-encrypt status -o json`.
type encryptionStatus struct {
	Stage        string   `json:"stage"`
	ActiveKey    string   `json:"activekey"`
	Enable       bool     `json:"enable"`
	HashMatch    bool     `json:"hashmatch"`
	HashError    string   `json:"hasherror,omitempty"`
	InactiveKeys []string `json:"inactivekeys"`
}

func (n *node) encrypts() bool { return n.cfg.on("secrets-encryption") }

// ensureEncryption makes the configuration at the first start. Later it is kept: a cluster that began without cannot change.
func (n *node) ensureEncryption() error {
	path := n.dirs.server(encryptionConfig)
	if !n.encrypts() || fileExists(path) {
		return nil
	}
	if n.hasEtcd() || fileExists(n.dirs.server("db", "state.db")) {
		return errors.New("secrets encryption cannot be enabled on an existing cluster")
	}
	return n.writeEncryption("start", n.newKey())
}

func (n *node) newKey() apiserver.Key {
	raw := make([]byte, 32)
	rand.Read(raw) //nolint:errcheck // crypto/rand ends the program rather than fail
	return apiserver.Key{
		Name:   strings.ToLower(n.provider()) + "key-" + time.Now().UTC().Format(time.RFC3339),
		Secret: base64.StdEncoding.EncodeToString(raw),
	}
}

func (n *node) provider() string { return n.cfg.text("secrets-encryption-provider", "aescbc") }

// writeEncryption lists the keys, the first of which encrypts, and keeps the stage beside them.
func (n *node) writeEncryption(stage string, keys ...apiserver.Key) error {
	var provider apiserver.ProviderConfiguration
	switch n.provider() {
	case "aescbc":
		provider.AESCBC = &apiserver.AESConfiguration{Keys: keys}
	case "secretbox":
		provider.Secretbox = &apiserver.SecretboxConfiguration{Keys: keys}
	default:
		return fmt.Errorf("unsupported secrets-encryption-provider %s", n.provider())
	}
	raw, err := json.Marshal(apiserver.EncryptionConfiguration{
		TypeMeta: metav1.TypeMeta{Kind: "EncryptionConfiguration", APIVersion: "apiserver.config.k8s.io/v1"},
		Resources: []apiserver.ResourceConfiguration{{
			Resources: []string{"secrets"},
			Providers: []apiserver.ProviderConfiguration{provider, {Identity: &apiserver.IdentityConfiguration{}}},
		}},
	})
	if err != nil {
		return err
	}
	if err := writeFile(n.dirs.server(encryptionState), []byte(stage), 0o600); err != nil {
		return err
	}
	return writeFile(n.dirs.server(encryptionConfig), raw, 0o600)
}

// encryptionKeys gives the keys in use, the one that encrypts first; none where Secrets are not encrypted.
func (n *node) encryptionKeys() ([]apiserver.Key, error) {
	raw, err := os.ReadFile(n.dirs.server(encryptionConfig))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var config apiserver.EncryptionConfiguration
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, err
	}
	for _, provider := range config.Resources[0].Providers {
		if provider.AESCBC != nil {
			return provider.AESCBC.Keys, nil
		}
		if provider.Secretbox != nil {
			return provider.Secretbox.Keys, nil
		}
	}
	return nil, nil
}

func (s *supervisor) encryptionStatus(w http.ResponseWriter, _ *http.Request) {
	keys, err := s.encryptionKeys()
	if err != nil {
		answer(w, nil, err)
		return
	}
	status := encryptionStatus{HashMatch: true, InactiveKeys: []string{}}
	if len(keys) > 0 {
		stage, err := os.ReadFile(s.dirs.server(encryptionState))
		if err != nil {
			answer(w, nil, err)
			return
		}
		status.Stage, status.Enable, status.ActiveKey = string(stage), true, keys[0].Name
		for _, key := range keys[1:] {
			status.InactiveKeys = append(status.InactiveKeys, key.Name)
		}
	}
	answer(w, status, nil)
}

// rotateKeys answers when the API server encrypts with the new key; the Secrets are rewritten afterwards, and then the old key
// goes. Other servers take the new configuration from the datastore when they restart, as with k3s.
func (s *supervisor) rotateKeys(w http.ResponseWriter, r *http.Request) {
	old, err := s.encryptionKeys()
	if err == nil && len(old) == 0 {
		http.Error(w, "secrets encryption is not enabled", http.StatusBadRequest)
		return
	}
	fresh := s.newKey()
	if err == nil {
		err = s.writeEncryption("reencrypt_active", append([]apiserver.Key{fresh}, old...)...)
	}
	if err == nil {
		err = s.waitForKeys(r.Context())
	}
	answer(w, "keys rotated, reencryption started", err)
	if err != nil {
		return
	}
	go func() {
		ctx := context.WithoutCancel(r.Context())
		err := s.cluster.rewriteSecrets(ctx)
		if err == nil {
			err = s.writeEncryption(reencryptDone, fresh)
		}
		if err == nil {
			err = s.storeBootstrap(ctx)
		}
		if err != nil {
			logrus.Errorf("Reencryption failed: %v", err)
			return
		}
		logrus.Info("Reencryption finished")
	}()
}

// waitForKeys returns when kube-apiserver has read the file: it counts what it reads, and looks once a minute.
func (s *supervisor) waitForKeys(ctx context.Context) error {
	count := func() (string, error) {
		raw, err := s.cluster.core.RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
		if err != nil {
			return "", err
		}
		var lines []string
		for line := range strings.Lines(string(raw)) {
			if strings.HasPrefix(line, "apiserver_encryption_config_controller_automatic_reloads_total") && strings.Contains(line, `status="success"`) {
				lines = append(lines, line)
			}
		}
		return strings.Join(lines, ""), nil
	}
	before, err := count()
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	return waitFor(limited, "kube-apiserver has read its encryption keys", time.Second, func() error {
		now, err := count()
		if err == nil && now == before {
			return errors.New("not read yet")
		}
		return err
	})
}

// rewriteSecrets has every Secret stored again, which encrypts it with the key in use.
func (c *cluster) rewriteSecrets(ctx context.Context) error {
	all, err := c.core.Secrets("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, secret := range all.Items {
		for {
			_, err := c.core.Secrets(secret.Namespace).Update(ctx, &secret, metav1.UpdateOptions{})
			if err == nil {
				break
			}
			found, getErr := c.core.Secrets(secret.Namespace).Get(ctx, secret.Name, metav1.GetOptions{})
			if getErr != nil {
				if notFoundIsNil(getErr) == nil {
					break // gone, and so encrypted enough
				}
				return errors.Join(err, getErr)
			}
			if found.ResourceVersion == secret.ResourceVersion {
				return err // nobody else changed it
			}
			secret = *found
		}
	}
	return nil
}

// runEncrypt is `k3s secrets-encrypt`.
func runEncrypt(args []string) error {
	if len(args) == 0 || !slices.Contains([]string{"status", "rotate-keys"}, args[0]) {
		return fmt.Errorf("of `k3s secrets-encrypt` this stand-in has status and rotate-keys (%s)", banner)
	}
	flags := flag.NewFlagSet("k3s secrets-encrypt", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	output := "text"
	flags.StringVar(&output, "o", output, "")
	flags.StringVar(&output, "output", output, "")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if args[0] == "rotate-keys" {
		var said string
		if err := askServer(http.MethodPost, "/v1-k3s/encrypt/rotate-keys", nil, &said); err != nil {
			return err
		}
		fmt.Println(said)
		return nil
	}
	var status encryptionStatus
	if err := askServer(http.MethodGet, "/v1-k3s/encrypt/status", nil, &status); err != nil {
		return err
	}
	if output == "json" {
		return json.NewEncoder(os.Stdout).Encode(status)
	}
	if !status.Enable {
		fmt.Println("Encryption Status: Disabled, no configuration file found")
		return nil
	}
	fmt.Printf("Encryption Status: Enabled\nCurrent Rotation Stage: %s\nServer Encryption Hashes: All hashes match\n\n", status.Stage)
	fmt.Print("Active  Key Name\n------  --------\n")
	fmt.Printf(" *      %s\n", status.ActiveKey)
	for _, name := range status.InactiveKeys {
		fmt.Printf("        %s\n", name)
	}
	return nil
}

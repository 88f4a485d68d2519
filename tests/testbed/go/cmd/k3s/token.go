package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
)

func randomHex(bytes int) string {
	raw := make([]byte, bytes)
	rand.Read(raw) //nolint:errcheck // crypto/rand ends the program rather than fail
	return hex.EncodeToString(raw)
}

// secretOf takes a token as an administrator may write it, short ("secret") or secure
// ("K10<sha256 of the CA>::user:secret"), and gives the secret and the CA hash ("" for a short one).
func secretOf(token string) (secret, hash string, err error) {
	token = strings.TrimSpace(token)
	rest, isSecure := strings.CutPrefix(token, "K10")
	if !isSecure {
		return token, "", nil
	}
	hash, credentials, found := strings.Cut(rest, "::")
	_, secret, hasUser := strings.Cut(credentials, ":")
	if bootstrapToken.MatchString(credentials) {
		secret, hasUser = credentials, true
	}
	if !found || !hasUser || secret == "" || len(hash) != 64 {
		return "", "", errors.New("invalid token format: want K10<CA-HASH>::<USERNAME>:<PASSWORD>")
	}
	return secret, hash, nil
}

func secureToken(caHash, user, secret string) string {
	return "K10" + caHash + "::" + user + ":" + secret
}

// givenToken reads a token from its key, or from the file of the key with "-file", for which it waits: the
// file may be delivered by something that starts later.
func givenToken(ctx context.Context, cfg *settings, name string) (string, error) {
	if token := cfg.text(name, ""); token != "" {
		return token, nil
	}
	path := cfg.text(name+"-file", "")
	if path == "" {
		return "", nil
	}
	for {
		raw, err := os.ReadFile(path)
		if token := strings.TrimSpace(string(raw)); err == nil && token != "" {
			return token, nil
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		logrus.Infof("Waiting for %s to be available", path)
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(2 * time.Second):
		}
	}
}

// serverSecret gives the secret of the server token: the one configured, else the one in server/token, else a
// new random one.
func serverSecret(ctx context.Context, d dirs, cfg *settings) (string, error) {
	token, err := givenToken(ctx, cfg, "token")
	if err != nil {
		return "", err
	}
	if token == "" {
		if raw, err := os.ReadFile(d.server("token")); err == nil {
			token = string(raw)
		} else if !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
	}
	if token == "" {
		token = randomHex(16)
	}
	secret, hash, err := secretOf(token)
	if err != nil {
		return "", err
	}
	if ca, err := os.ReadFile(d.tls("server-ca.crt")); err == nil && hash != "" && hash != caHash(ca) {
		return "", fmt.Errorf("token CA hash does not match the Cluster CA certificate hash: %s != %s", hash, caHash(ca))
	}
	return secret, nil
}

func caHash(pemBytes []byte) string {
	sum := sha256.Sum256(pemBytes)
	return hex.EncodeToString(sum[:])
}

// writeTokens leaves the token files of contract §3; agentSecret may be empty.
func writeTokens(d dirs, secret, agentSecret string) error {
	ca, err := os.ReadFile(d.tls("server-ca.crt"))
	if err != nil {
		return err
	}
	hash, node := caHash(ca), secret
	if err := writeFile(d.server("token"), []byte(secureToken(hash, "server", secret)+"\n"), 0o600); err != nil {
		return err
	}
	if err := relink(d.server("token"), d.server("node-token")); err != nil {
		return err
	}
	if agentSecret == "" {
		err = relink(d.server("token"), d.server("agent-token"))
	} else {
		node = agentSecret
		err = writeFile(d.server("agent-token"), []byte(secureToken(hash, "node", node)+"\n"), 0o600)
	}
	if err != nil {
		return err
	}
	passwd := fmt.Sprintf("%s,node,node,k3s:agent\n%s,server,server,k3s:server\n", node, secret)
	return writeFile(d.server("cred", "passwd"), []byte(passwd), 0o600)
}

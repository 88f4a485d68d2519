package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

const maxAnswerBytes = 1 << 20

// provider is the OpenID Connect side: where to send a browser, and what a code is worth.
type provider struct {
	settings providerSettings
	client   *http.Client
	lock     sync.Mutex
	keys     map[string]*rsa.PublicKey
}

// claims of an id token that the stand-in looks at.
type claims struct {
	Issuer   string   `json:"iss"`
	Audience audience `json:"aud"`
	Expires  float64  `json:"exp"`
	Subject  string   `json:"sub"`
	Email    string   `json:"email"`
	Verified *bool    `json:"email_verified"`
	Nonce    string   `json:"nonce"`
}

// audience is one name or a list of names.
type audience []string

func (a *audience) UnmarshalJSON(data []byte) error {
	if bytes.HasPrefix(data, []byte("[")) {
		return json.Unmarshal(data, (*[]string)(a))
	}
	*a = make(audience, 1)
	return json.Unmarshal(data, &(*a)[0])
}

// newProvider asks the issuer for its addresses when the configuration does not give them, and fails without an answer:
// a proxy with discovery does not start while its provider is away.
func newProvider(settings providerSettings) (*provider, error) {
	p := &provider{settings: settings, client: &http.Client{Timeout: 30 * time.Second}, keys: map[string]*rsa.PublicKey{}}
	if settings.caFile != "" {
		pem, err := os.ReadFile(settings.caFile)
		trusted := x509.NewCertPool()
		if err != nil || !trusted.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("no certificate authority in %s (%v)", settings.caFile, err)
		}
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.TLSClientConfig = &tls.Config{RootCAs: trusted}
		p.client.Transport = transport
	}
	if settings.loginURL != nil {
		return p, nil
	}
	return p, p.discover()
}

func (p *provider) discover() error {
	request, err := http.NewRequest(http.MethodGet, p.settings.issuer+"/.well-known/openid-configuration", nil)
	if err != nil {
		return err
	}
	var told struct {
		Issuer string `json:"issuer"`
		Login  string `json:"authorization_endpoint"`
		Redeem string `json:"token_endpoint"`
		Keys   string `json:"jwks_uri"`
	}
	if err := p.ask(request, &told); err != nil {
		return fmt.Errorf("OIDC discovery: %w", err)
	}
	wrong := &complaints{}
	wrong.check(told.Issuer == p.settings.issuer, "the issuer calls itself "+told.Issuer)
	p.settings.loginURL, p.settings.redeemURL = wrong.url("authorization_endpoint", told.Login), wrong.url("token_endpoint", told.Redeem)
	p.settings.jwkURL = wrong.url("jwks_uri", told.Keys)
	if len(wrong.list) > 0 {
		return fmt.Errorf("OIDC discovery: %s", strings.Join(wrong.list, ", "))
	}
	return nil
}

func random() []byte {
	made := make([]byte, 32)
	rand.Read(made) //nolint:errcheck // never fails since Go 1.24: it ends the process instead
	return made
}

// hashed is what leaves the browser's cookie: knowing it does not give the cookie's content.
func hashed(secret []byte) string {
	sum := sha256.Sum256(secret)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func newAttempt() *attempt {
	return &attempt{State: random(), Nonce: random(), Verifier: base64.RawURLEncoding.EncodeToString(slices.Concat(random(), random(), random()))}
}

// loginURL is where the browser goes to sign in. Of the page's own parameters it takes those that are allowed by value.
func (p *provider) loginURL(begun *attempt, state, redirect string, asked url.Values) string {
	query := p.settings.loginURL.Query()
	for name, allowed := range p.settings.allowedParameters {
		for _, value := range asked[name] {
			if slices.Contains(allowed, value) {
				query.Add(name, value)
			}
		}
	}
	if p.settings.prompt != "" {
		query.Set("prompt", p.settings.prompt)
	}
	query.Set("client_id", p.settings.clientID)
	query.Set("redirect_uri", redirect)
	query.Set("response_type", "code")
	query.Set("scope", p.settings.scope)
	query.Set("state", state)
	query.Set("nonce", hashed(begun.Nonce))
	query.Set("code_challenge", hashed([]byte(begun.Verifier)))
	query.Set("code_challenge_method", "S256")
	target := *p.settings.loginURL
	target.RawQuery = query.Encode()
	return target.String()
}

// redeem turns a code into claims that the provider signed. The nonce is the caller's to check.
func (p *provider) redeem(ctx context.Context, code, verifier, redirect string) (*claims, error) {
	secret, err := os.ReadFile(p.settings.clientSecretFile)
	if err != nil {
		return nil, err
	}
	form := url.Values{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {redirect}, "code_verifier": {verifier}}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, p.settings.redeemURL.String(), strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.SetBasicAuth(url.QueryEscape(p.settings.clientID), url.QueryEscape(string(secret)))
	var answer struct {
		IDToken string `json:"id_token"`
	}
	if err := p.ask(request, &answer); err != nil {
		return nil, fmt.Errorf("token exchange failed: %w", err)
	}
	return p.verify(ctx, answer.IDToken)
}

// verify checks signature, issuer, audience, lifetime, and that the address is not one the person merely claims.
func (p *provider) verify(ctx context.Context, token string) (*claims, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, errors.New("the provider's answer holds no id_token")
	}
	var header struct{ Alg, Kid string }
	found := &claims{}
	if err := errors.Join(part(parts[0], &header), part(parts[1], found)); err != nil {
		return nil, err
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil || header.Alg != "RS256" {
		return nil, errors.New("the id_token is not signed with RS256")
	}
	key, err := p.key(ctx, header.Kid)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], signature); err != nil {
		return nil, fmt.Errorf("could not verify id_token: %w", err)
	}
	switch {
	case found.Issuer != p.settings.issuer:
		return nil, errors.New("the id_token is of another issuer")
	case !slices.Contains(found.Audience, p.settings.clientID):
		return nil, errors.New("the id_token is for another client")
	case time.Now().After(time.Unix(int64(found.Expires), 0)):
		return nil, errors.New("the id_token has expired")
	case found.Email == "":
		return nil, errors.New("the id_token has no email")
	case found.Verified != nil && !*found.Verified:
		return nil, errors.New("the email in the id_token isn't verified")
	}
	return found, nil
}

func (c *claims) answers(nonce []byte) bool {
	return hmac.Equal([]byte(c.Nonce), []byte(hashed(nonce)))
}

// key asks the provider again when it does not know the key: providers change theirs every few weeks.
func (p *provider) key(ctx context.Context, id string) (*rsa.PublicKey, error) {
	p.lock.Lock()
	defer p.lock.Unlock()
	if key := p.keys[id]; key != nil {
		return key, nil
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.settings.jwkURL.String(), nil)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Keys []struct{ Kty, Kid, N, E string }
	}
	if err := p.ask(request, &answer); err != nil {
		return nil, err
	}
	for _, key := range answer.Keys {
		n, errN := base64.RawURLEncoding.DecodeString(key.N)
		e, errE := base64.RawURLEncoding.DecodeString(key.E)
		if key.Kty == "RSA" && errors.Join(errN, errE) == nil {
			p.keys[key.Kid] = &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}
		}
	}
	if key := p.keys[id]; key != nil {
		return key, nil
	}
	return nil, errors.New("the id_token is signed with a key that the provider does not publish")
}

func (p *provider) ask(request *http.Request, into any) error {
	response, err := p.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close() //nolint:errcheck // read to the end
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", request.URL.Host, response.Status)
	}
	return json.Unmarshal(body, into)
}

func part(text string, into any) error {
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, into)
}

package main

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"
)

// Clocks of replicas differ a little; a cookie from further in the future was not made by us.
const clockSkew = 5 * time.Minute

// jar makes and opens the instance's cookies: encrypted, bound to their name and to the time they were made at.
type jar struct {
	settings cookieSettings
	sealer   cipher.AEAD
}

// session is who signed in. The token of the provider is not kept.
type session struct {
	User  string `json:"user"`
	Email string `json:"email"`
}

// attempt is a sign-in under way. It lives in the browser, so that any replica can finish it.
type attempt struct {
	State    []byte `json:"state"`
	Nonce    []byte `json:"nonce"`
	Verifier string `json:"verifier"`
}

type sealed struct {
	Made    int64           `json:"made"`
	Content json.RawMessage `json:"content"`
}

func newJar(settings cookieSettings) *jar {
	block, err := aes.NewCipher(settings.key)
	if err != nil {
		panic(err) // load has checked the length
	}
	sealer, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return &jar{settings, sealer}
}

// seal returns content as a cookie's value; the name is authenticated with it.
func (j *jar) seal(name string, content any) (string, error) {
	inner, err := json.Marshal(content)
	if err != nil {
		return "", err
	}
	plain, err := json.Marshal(sealed{time.Now().Unix(), inner})
	if err != nil {
		return "", err
	}
	number := make([]byte, j.sealer.NonceSize())
	if _, err := rand.Read(number); err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(j.sealer.Seal(number, number, plain, []byte(name))), nil
}

func (j *jar) open(cookie *http.Cookie, lifetime time.Duration, content any) error {
	raw, err := base64.RawURLEncoding.DecodeString(cookie.Value)
	if err != nil || len(raw) < j.sealer.NonceSize() {
		return errors.New("the cookie is no cookie of this instance")
	}
	size := j.sealer.NonceSize()
	plain, err := j.sealer.Open(nil, raw[:size], raw[size:], []byte(cookie.Name))
	if err != nil {
		return errors.New("the cookie was made with another secret or name, or changed")
	}
	var box sealed
	if err := json.Unmarshal(plain, &box); err != nil {
		return err
	}
	if age := time.Since(time.Unix(box.Made, 0)); age > lifetime || age < -clockSkew {
		return errors.New("the cookie has expired")
	}
	return json.Unmarshal(box.Content, content)
}

// session returns who the request's cookie says is signed in; nil without a cookie. A cookie that does not open is
// cleared, so that a browser does not send it for a week.
func (j *jar) session(w http.ResponseWriter, r *http.Request, host string) *session {
	cookie, err := r.Cookie(j.settings.name)
	if err != nil {
		return nil
	}
	found := &session{}
	if err := j.open(cookie, j.settings.expire, found); err != nil {
		problems.Printf("removing a session: %v", err)
		j.clearSession(w, r, host)
		return nil
	}
	return found
}

func (j *jar) setSession(w http.ResponseWriter, host string, found *session) error {
	value, err := j.seal(j.settings.name, found)
	if err != nil {
		return err
	}
	http.SetCookie(w, j.cookie(j.settings.name, value, host, j.settings.expire))
	return nil
}

// clearSession removes the cookie from the browser that sent it; others get no Set-Cookie.
func (j *jar) clearSession(w http.ResponseWriter, r *http.Request, host string) {
	if _, err := r.Cookie(j.settings.name); err == nil {
		j.clear(w, j.settings.name, host)
	}
}

// setAttempt makes the cookie of one sign-in, named after its state, so that two tabs do not overwrite each other's.
func (j *jar) setAttempt(w http.ResponseWriter, r *http.Request, host string, begun *attempt) error {
	j.dropOldAttempts(w, r, host)
	name := j.attemptName(hashed(begun.State))
	value, err := j.seal(name, begun)
	if err != nil {
		return err
	}
	http.SetCookie(w, j.cookie(name, value, host, j.settings.csrfExpire))
	return nil
}

// dropOldAttempts keeps a browser that never finishes from growing its Cookie header without bound.
func (j *jar) dropOldAttempts(w http.ResponseWriter, r *http.Request, host string) {
	var names []string
	for _, cookie := range r.Cookies() {
		if strings.HasPrefix(cookie.Name, j.settings.name+"_") && strings.HasSuffix(cookie.Name, "_csrf") {
			names = append(names, cookie.Name)
		}
	}
	for i := 0; j.settings.csrfLimit > 0 && i < len(names)-j.settings.csrfLimit; i++ {
		j.clear(w, names[i], host) // browsers send older cookies first
	}
}

func (j *jar) attempt(r *http.Request, state string) (*attempt, error) {
	cookie, err := r.Cookie(j.attemptName(state))
	if err != nil {
		return nil, err
	}
	begun := &attempt{}
	return begun, j.open(cookie, j.settings.csrfExpire, begun)
}

func (j *jar) attemptName(state string) string {
	return j.settings.name + "_" + state[:min(8, len(state))] + "_csrf"
}

func (j *jar) clear(w http.ResponseWriter, name, host string) {
	cookie := j.cookie(name, "", host, 0)
	cookie.MaxAge = -1
	http.SetCookie(w, cookie)
}

func (j *jar) cookie(name, value, host string, lifetime time.Duration) *http.Cookie {
	return &http.Cookie{
		Name: name, Value: value, Path: "/", Domain: j.domain(host), MaxAge: int(lifetime.Seconds()),
		Secure: j.settings.secure, HttpOnly: j.settings.httpOnly, SameSite: http.SameSiteLaxMode,
	}
}

// domain is the configured domain that the host is in, else the last one; empty (this host only) without any.
func (j *jar) domain(host string) string {
	for _, domain := range j.settings.domains {
		if strings.HasSuffix(host, domain) {
			return domain
		}
	}
	if n := len(j.settings.domains); n > 0 {
		return j.settings.domains[n-1]
	}
	return ""
}

package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
)

const (
	prefix  = "/oauth2"
	noCache = "no-cache, no-store, must-revalidate, max-age=0"
)

// proxy is one instance: who may pass, and where to.
type proxy struct {
	settings *settings
	people   *whitelist
	pages    *pages
	jar      *jar
	provider *provider
	upstream http.Handler
}

func newProxy(s *settings, people *whitelist, pages *pages) (*proxy, error) {
	provider, err := newProvider(s.provider)
	if err != nil {
		return nil, err
	}
	p := &proxy{settings: s, people: people, pages: pages, jar: newJar(s.cookie), provider: provider}
	p.upstream = p.newUpstream()
	return p, nil
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if redirectToClean(w, r, r.URL.EscapedPath()) {
		return
	}
	switch r.URL.EscapedPath() {
	case "/ping", "/ready":
		fmt.Fprint(w, "OK") //nolint:errcheck // the client is gone
	case "/robots.txt":
		fmt.Fprint(w, "User-agent: *\nDisallow: /\n") //nolint:errcheck // the client is gone
	case prefix + "/auth":
		p.authOnly(w, r)
	case prefix + "/userinfo":
		p.userInfo(w, r)
	case prefix + "/start", prefix + "/sign_in":
		p.start(w, r, true)
	case prefix + "/callback":
		p.callback(w, r)
	case prefix + "/sign_out":
		p.signOut(w, r)
	default:
		p.pass(w, r)
	}
}

// who returns the person, or nobody with whether it is somebody who is not on the list (and whose cookie is cleared).
func (p *proxy) who(w http.ResponseWriter, r *http.Request) (found *session, removed bool) {
	host := p.seen(r).host
	found = p.jar.session(w, r, host)
	if found == nil || p.people.has(found.Email) {
		return found, false
	}
	p.jar.clearSession(w, r, host)
	return nil, true
}

// pass lets a listed person through to the upstream and sends everybody else to sign in.
func (p *proxy) pass(w http.ResponseWriter, r *http.Request) {
	person, removed := p.who(w, r)
	switch {
	case removed:
		p.page(w, r, http.StatusForbidden, "You do not have permission to access this resource.")
	case person == nil && p.isAPI(r):
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, "{}") //nolint:errcheck // the client is gone
	case person == nil:
		p.start(w, r, false)
	default:
		p.tell(w, person)
		p.strip(r)
		p.fill(r, person)
		// The first look at the path was at its encoded form; here `%2e%2e` counts too.
		if !redirectToClean(w, r, r.URL.Path) {
			p.upstream.ServeHTTP(w, r)
		}
	}
}

// isAPI: a program cannot follow a redirect to a sign-in page, it gets 401.
func (p *proxy) isAPI(r *http.Request) bool {
	for _, line := range r.Header.Values("Accept") {
		for _, element := range strings.Split(line, ",") {
			if strings.TrimSpace(element) == "application/json" {
				return true
			}
		}
	}
	uri := p.seen(r).uri
	for _, route := range p.settings.apiRoutes {
		if route.MatchString(uri) {
			return true
		}
	}
	return false
}

// tell names the person in the answer: Gap-Auth always, and on the apps instance what Traefik copies into the request.
func (p *proxy) tell(w http.ResponseWriter, person *session) {
	w.Header().Set("Gap-Auth", person.Email)
	if p.settings.tellPerson {
		w.Header().Set("X-Auth-Request-Email", person.Email)
		w.Header().Set("X-Auth-Request-User", person.User)
	}
}

// strip removes the client's copies: any case, dash or underscore. Other characters stay, as with the real one.
func (p *proxy) strip(r *http.Request) {
	for _, header := range p.settings.inject {
		for name := range r.Header {
			if fold(name) == fold(header.name) {
				delete(r.Header, name)
			}
		}
	}
}

func fold(name string) string {
	return strings.ReplaceAll(strings.ToLower(name), "_", "-")
}

// fill sets ours, and joins what a client sent twice.
func (p *proxy) fill(r *http.Request, person *session) {
	for _, header := range p.settings.inject {
		if header.value != nil {
			r.Header.Add(header.name, header.value(person.Email))
		}
	}
	for name, values := range r.Header {
		if len(values) > 1 {
			r.Header[name] = []string{strings.Join(values, ",")}
		}
	}
}

func (p *proxy) newUpstream() http.Handler {
	target := p.settings.upstream
	if target.uri == nil {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(target.staticCode)
			fmt.Fprint(w, "Authenticated") //nolint:errcheck // the client is gone
		})
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = target.timeout
	return &httputil.ReverseProxy{
		Transport:     transport,
		FlushInterval: target.flushInterval,
		Rewrite: func(hop *httputil.ProxyRequest) {
			hop.Out.URL.Scheme, hop.Out.URL.Host = target.uri.Scheme, target.uri.Host
			// Byte for byte what the client sent: no decoding of %2F, no sorting of the query.
			hop.Out.URL.Opaque, hop.Out.URL.RawQuery, hop.Out.URL.ForceQuery = hop.In.RequestURI, "", false
			hop.Out.Host = hop.In.Host
			keepForwarded(hop)
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			problems.Printf("Error proxying to upstream server: %v", err)
			p.page(w, r, http.StatusBadGateway, "There was a problem connecting to the upstream server.")
		},
	}
}

// keepForwarded passes on what the front proxy said and adds the peer's address to it.
func keepForwarded(hop *httputil.ProxyRequest) {
	for _, name := range []string{"Forwarded", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if values, ok := hop.In.Header[name]; ok {
			hop.Out.Header[name] = values
		}
	}
	peer, _, err := net.SplitHostPort(hop.In.RemoteAddr)
	if err != nil {
		return
	}
	hop.Out.Header.Set("X-Forwarded-For", strings.Join(append(hop.In.Header.Values("X-Forwarded-For"), peer), ", "))
}

func (p *proxy) authOnly(w http.ResponseWriter, r *http.Request) {
	person, _ := p.who(w, r)
	if person == nil {
		http.Error(w, http.StatusText(http.StatusUnauthorized), http.StatusUnauthorized)
		return
	}
	p.tell(w, person)
	w.WriteHeader(http.StatusAccepted)
}

func (p *proxy) userInfo(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", noCache)
	person, _ := p.who(w, r)
	if person == nil {
		http.Error(w, http.StatusText(http.StatusUnauthorized), http.StatusUnauthorized)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(person) //nolint:errcheck // the client is gone
}

// start sends the browser to the provider. Only a page that starts a sign-in on purpose may add parameters to it.
func (p *proxy) start(w http.ResponseWriter, r *http.Request, onPurpose bool) {
	w.Header().Set("Cache-Control", noCache)
	begun, here := newAttempt(), p.seen(r)
	state := hashed(begun.State) + ":" + p.wanted(r)
	var asked map[string][]string
	if onPurpose {
		asked = r.URL.Query()
	}
	if err := p.jar.setAttempt(w, r, here.host, begun); err != nil {
		p.page(w, r, http.StatusInternalServerError, "The sign-in cannot start.")
		return
	}
	http.Redirect(w, r, p.provider.loginURL(begun, state, p.settings.redirectURL.String(), asked), http.StatusFound)
}

// callback ends the sign-in, or says in which way it failed.
func (p *proxy) callback(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", noCache)
	if code := r.FormValue("error"); code != "" {
		p.page(w, r, http.StatusForbidden, "Login Failed: The upstream identity provider returned an error: "+code)
		return
	}
	state, target, found := strings.Cut(r.FormValue("state"), ":")
	if !found {
		p.page(w, r, http.StatusInternalServerError, "The provider's answer belongs to no sign-in.")
		return
	}
	begun, err := p.jar.attempt(r, state)
	if err != nil {
		p.page(w, r, http.StatusForbidden, "Login Failed: Unable to find a valid CSRF token. Please try again.")
		return
	}
	claims, err := p.provider.redeem(r.Context(), r.FormValue("code"), begun.Verifier, p.settings.redirectURL.String())
	if err != nil {
		problems.Printf("Error redeeming code during OAuth2 callback: %v", err)
		p.page(w, r, http.StatusInternalServerError, "Oops! Something went wrong. For more information contact your server administrator.")
		return
	}
	host := p.seen(r).host
	p.jar.clear(w, p.jar.attemptName(state), host)
	if hashed(begun.State) != state || !claims.answers(begun.Nonce) {
		p.page(w, r, http.StatusForbidden, "Login Failed: Unable to find a valid CSRF token. Please try again.")
		return
	}
	if !p.people.has(claims.Email) {
		p.page(w, r, http.StatusForbidden, "You do not have permission to access this resource.")
		return
	}
	if !p.allowed(target) {
		target = "/"
	}
	if err := p.jar.setSession(w, host, &session{User: claims.Subject, Email: claims.Email}); err != nil {
		p.page(w, r, http.StatusInternalServerError, "The session cannot be kept.")
		return
	}
	http.Redirect(w, r, target, http.StatusFound)
}

func (p *proxy) signOut(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", noCache)
	target := p.wanted(r)
	p.jar.clearSession(w, r, p.seen(r).host)
	http.Redirect(w, r, target, http.StatusFound)
}

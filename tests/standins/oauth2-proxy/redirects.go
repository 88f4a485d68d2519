package main

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"strings"
)

// Browsers read these as the start of another site's address, or as a way out of the path.
var treacherous = regexp.MustCompile(`[/\\](?:[\s\v]*|\.{1,2})[/\\]`)

// seen is the request as the browser made it: from X-Forwarded-* when the sender may set them, else as it came.
type seen struct {
	scheme, host, uri string
	forwarded         bool
}

func (p *proxy) seen(r *http.Request) seen {
	found := seen{host: r.Host, uri: r.URL.RequestURI()}
	if !p.settings.reverseProxy || !p.trusts(r.RemoteAddr) {
		return found
	}
	for header, field := range map[string]*string{
		"X-Forwarded-Proto": &found.scheme, "X-Forwarded-Host": &found.host, "X-Forwarded-Uri": &found.uri,
	} {
		if value := r.Header.Get(header); value != "" {
			*field = value
		}
	}
	found.forwarded = found.host != r.Host
	return found
}

func (p *proxy) trusts(remote string) bool {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return false
	}
	address, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	for _, prefix := range p.settings.trustedProxies {
		if prefix.Contains(address.Unmap()) {
			return true
		}
	}
	return false
}

// wanted is where the person goes after signing in or out: what they asked for if it is ours, else where they were.
func (p *proxy) wanted(r *http.Request) string {
	here := p.seen(r)
	if err := r.ParseForm(); err != nil {
		return "/"
	}
	for _, asked := range []string{r.Form.Get("rd"), r.Header.Get("X-Auth-Request-Redirect")} {
		if p.allowed(asked) {
			return asked
		}
	}
	own := strings.HasPrefix(here.uri, prefix+"/")
	if here.forwarded {
		uri := here.uri
		if own {
			uri = "/"
		}
		if full := here.scheme + "://" + here.host + uri; p.allowed(full) {
			return full
		}
	}
	if own {
		return "/"
	}
	if p.allowed(here.uri) {
		return here.uri
	}
	return r.URL.RequestURI()
}

// allowed: a path here, or an address in whitelist_domains.
func (p *proxy) allowed(target string) bool {
	if strings.HasPrefix(target, "/") {
		return !strings.HasPrefix(target, "//") && !treacherous.MatchString(target)
	}
	if !strings.HasPrefix(target, "http://") && !strings.HasPrefix(target, "https://") {
		return false
	}
	parsed, err := url.Parse(target)
	if err != nil {
		return false
	}
	for _, domain := range p.settings.whitelistDomains {
		host, port, found := strings.Cut(domain, ":")
		if found && port != "*" && port != parsed.Port() || !found && parsed.Port() != "" {
			continue
		}
		name := strings.TrimPrefix(host, "*")
		if parsed.Hostname() == strings.TrimPrefix(name, ".") || strings.HasPrefix(name, ".") && strings.HasSuffix(parsed.Hostname(), name) {
			return true
		}
	}
	return false
}

// clean is the path without empty and dot elements; a slash at the end stays.
func clean(dirty string) string {
	if dirty == "" {
		return "/"
	}
	cleaned := path.Clean("/" + strings.TrimPrefix(dirty, "/"))
	if strings.HasSuffix(dirty, "/") && cleaned != "/" {
		cleaned += "/"
	}
	return cleaned
}

// redirectToClean answers a path that is not clean, and says whether it did.
func redirectToClean(w http.ResponseWriter, r *http.Request, dirty string) bool {
	cleaned := clean(dirty)
	if cleaned == dirty {
		return false
	}
	target := *r.URL
	target.Path, target.RawPath = cleaned, ""
	w.Header().Set("Location", target.String())
	w.WriteHeader(http.StatusMovedPermanently)
	return true
}

package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"go.yaml.in/yaml/v3"
)

// settings is what the two kinds of configuration come to.
type settings struct {
	bind, metricsBind string
	redirectURL       *url.URL
	reverseProxy      bool
	trustedProxies    []netip.Prefix
	whitelistDomains  []string
	whitelistFile     string
	templatesDir      string
	apiRoutes         []*regexp.Regexp
	cookie            cookieSettings
	provider          providerSettings
	upstream          upstreamSettings
	inject            []injection
	// Answers of the apps instance carry the person, for Traefik to pass on.
	tellPerson bool
}

type cookieSettings struct {
	name, sameSite     string
	key                []byte
	domains            []string
	expire, csrfExpire time.Duration
	secure, httpOnly   bool
	csrfLimit          int
}

type providerSettings struct {
	clientID, clientSecretFile  string
	scope, issuer, caFile       string
	loginURL, redeemURL, jwkURL *url.URL // nil: asked of the issuer at the start
	// A parameter that each sign-in sends along: the apps instance lets people choose the account.
	prompt string
	// Parameters of the sign-in page's address that a page of ours may set, with the values that it may set.
	allowedParameters map[string][]string
}

type upstreamSettings struct {
	uri                    *url.URL // nil: the fixed answer below
	staticCode             int
	flushInterval, timeout time.Duration
}

// injection is one line of injectRequestHeaders: remove the header in every spelling, then set it when there is a value.
type injection struct {
	name  string
	value func(person string) string // nil: only remove
}

// duration reads "168h" in both formats.
type duration time.Duration

func (d *duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = duration(parsed)
	return err
}

// coreFile: keys that both instances may have. A pointer tells whether the key is there.
type coreFile struct {
	RedirectURL         string   `toml:"redirect_url"`
	EmailDomains        []string `toml:"email_domains"`
	EmailsFile          string   `toml:"authenticated_emails_file"`
	CookieSecretFile    string   `toml:"cookie_secret_file"`
	CookieName          string   `toml:"cookie_name"`
	CookieDomains       []string `toml:"cookie_domains"`
	CookiePath          string   `toml:"cookie_path"`
	CookieSecure        bool     `toml:"cookie_secure"`
	CookieHTTPOnly      bool     `toml:"cookie_httponly"`
	CookieSameSite      string   `toml:"cookie_samesite"`
	CookieExpire        duration `toml:"cookie_expire"`
	CookieRefresh       duration `toml:"cookie_refresh"`
	CSRFPerRequest      bool     `toml:"cookie_csrf_per_request"`
	CSRFPerRequestLimit int      `toml:"cookie_csrf_per_request_limit"`
	CSRFExpire          duration `toml:"cookie_csrf_expire"`
	SessionMinimal      bool     `toml:"session_cookie_minimal"`
	SkipProviderButton  bool     `toml:"skip_provider_button"`
	APIRoutes           []string `toml:"api_routes"`
	TemplatesDir        string   `toml:"custom_templates_dir"`
	WhitelistDomains    []string `toml:"whitelist_domains"`
	ReverseProxy        bool     `toml:"reverse_proxy"`
	TrustedProxyIPs     []string `toml:"trusted_proxy_ips"`
	RequestLogging      *bool    `toml:"request_logging"`
	LoggingLocalTime    *bool    `toml:"logging_local_time"`
}

// plainFile adds the keys of an instance that has no alpha configuration.
type plainFile struct {
	coreFile
	HTTPAddress         string   `toml:"http_address"`
	MetricsAddress      string   `toml:"metrics_address"`
	Provider            string   `toml:"provider"`
	ProviderName        string   `toml:"provider_display_name"`
	ClientID            string   `toml:"client_id"`
	ClientSecretFile    string   `toml:"client_secret_file"`
	Scope               string   `toml:"scope"`
	CodeChallengeMethod string   `toml:"code_challenge_method"`
	CAFiles             []string `toml:"provider_ca_files"`
	Prompt              string   `toml:"prompt"`
	IssuerURL           string   `toml:"oidc_issuer_url"`
	SkipDiscovery       bool     `toml:"skip_oidc_discovery"`
	LoginURL            string   `toml:"login_url"`
	RedeemURL           string   `toml:"redeem_url"`
	ProfileURL          string   `toml:"profile_url"`
	JWKSURL             string   `toml:"oidc_jwks_url"`
	SkipNonce           *bool    `toml:"insecure_oidc_skip_nonce"`
	AllowUnverified     bool     `toml:"insecure_oidc_allow_unverified_email"`
	SkipIssuer          bool     `toml:"insecure_oidc_skip_issuer_verification"`
	AudienceClaims      []string `toml:"oidc_audience_claims"`
	EmailClaim          string   `toml:"oidc_email_claim"`
	Upstreams           []string `toml:"upstreams"`
	SetXAuthRequest     bool     `toml:"set_xauthrequest"`
}

type alphaFile struct {
	Server        listenAddress `yaml:"server"`
	MetricsServer listenAddress `yaml:"metricsServer"`
	Providers     []struct {
		ID                  string   `yaml:"id"`
		Name                string   `yaml:"name"`
		Provider            string   `yaml:"provider"`
		ClientID            string   `yaml:"clientID"`
		ClientSecretFile    string   `yaml:"clientSecretFile"`
		Scope               string   `yaml:"scope"`
		CodeChallengeMethod string   `yaml:"code_challenge_method"`
		CAFiles             []string `yaml:"caFiles"`
		LoginURL            string   `yaml:"loginURL"`
		RedeemURL           string   `yaml:"redeemURL"`
		ProfileURL          string   `yaml:"profileURL"`
		LoginURLParameters  []struct {
			Name  string `yaml:"name"`
			Allow []struct {
				Value string `yaml:"value"`
			} `yaml:"allow"`
		} `yaml:"loginURLParameters"`
		OIDC struct {
			IssuerURL         string   `yaml:"issuerURL"`
			SkipDiscovery     bool     `yaml:"skipDiscovery"`
			JWKSURL           string   `yaml:"jwksURL"`
			InsecureSkipNonce *bool    `yaml:"insecureSkipNonce"`
			AllowUnverified   bool     `yaml:"insecureAllowUnverifiedEmail"`
			SkipIssuer        bool     `yaml:"insecureSkipIssuerVerification"`
			AudienceClaims    []string `yaml:"audienceClaims"`
			EmailClaim        string   `yaml:"emailClaim"`
		} `yaml:"oidcConfig"`
	} `yaml:"providers"`
	UpstreamConfig struct {
		Upstreams []struct {
			ID            string   `yaml:"id"`
			Path          string   `yaml:"path"`
			URI           string   `yaml:"uri"`
			FlushInterval duration `yaml:"flushInterval"`
			Timeout       duration `yaml:"timeout"`
		} `yaml:"upstreams"`
	} `yaml:"upstreamConfig"`
	InjectRequestHeaders []struct {
		Name                 string       `yaml:"name"`
		PreserveRequestValue bool         `yaml:"preserveRequestValue"`
		Values               []valueAlpha `yaml:"values"`
	} `yaml:"injectRequestHeaders"`
}

type listenAddress struct {
	BindAddress string `yaml:"bindAddress"`
}

type valueAlpha struct {
	Secret *secretFile `yaml:"secretSource"`
	Claim  *struct {
		Claim             string      `yaml:"claim"`
		Prefix            string      `yaml:"prefix"`
		BasicAuthPassword *secretFile `yaml:"basicAuthPassword"`
	} `yaml:"claimSource"`
}

type secretFile struct {
	FromFile string `yaml:"fromFile"`
}

// load reads one file (apps) or both (chat) and says everything that is wrong with them at once.
func load(corePath, alphaPath string) (*settings, error) {
	if err := refuseEnvironment(os.Environ()); err != nil {
		return nil, err
	}
	if corePath == "" {
		return nil, errors.New("--config is missing: the stand-in takes no setting from flags")
	}
	if alphaPath == "" {
		return loadPlain(corePath)
	}
	return loadWithAlpha(corePath, alphaPath)
}

func loadPlain(path string) (*settings, error) {
	var file plainFile
	if err := readTOML(path, &file); err != nil {
		return nil, err
	}
	s, wrong := file.common()
	s.bind, s.metricsBind = file.HTTPAddress, file.MetricsAddress
	s.tellPerson = file.SetXAuthRequest
	wrong.check(file.Provider == "oidc", "provider must be oidc")
	wrong.check(file.CodeChallengeMethod == "S256", "code_challenge_method must be S256")
	wrong.check(file.SkipNonce != nil && !*file.SkipNonce, "insecure_oidc_skip_nonce must be false")
	wrong.check(!file.AllowUnverified, "insecure_oidc_allow_unverified_email must be false")
	wrong.check(!file.SkipIssuer, "insecure_oidc_skip_issuer_verification must be false")
	wrong.check(len(file.AudienceClaims) == 0 || slices.Equal(file.AudienceClaims, []string{"aud"}), "oidc_audience_claims must be [aud]")
	wrong.check(file.EmailClaim == "" || file.EmailClaim == "email", "oidc_email_claim must be email")
	s.provider = providerSettings{
		clientID: file.ClientID, clientSecretFile: file.ClientSecretFile, scope: file.Scope, issuer: file.IssuerURL,
		caFile: wrong.caFile(file.CAFiles), prompt: file.Prompt,
	}
	if file.SkipDiscovery {
		s.provider.loginURL, s.provider.redeemURL = wrong.url("login_url", file.LoginURL), wrong.url("redeem_url", file.RedeemURL)
		s.provider.jwkURL = wrong.url("oidc_jwks_url", file.JWKSURL)
	}
	wrong.check(slices.Equal(file.Upstreams, []string{"static://202"}), `upstreams must be ["static://202"]`)
	s.upstream.staticCode = 202
	return wrong.result(s)
}

func loadWithAlpha(corePath, alphaPath string) (*settings, error) {
	var core coreFile
	if err := readTOML(corePath, &core); err != nil {
		return nil, err
	}
	var file alphaFile
	if err := readYAML(alphaPath, &file); err != nil {
		return nil, err
	}
	s, wrong := core.common()
	s.bind, s.metricsBind = file.Server.BindAddress, file.MetricsServer.BindAddress
	file.provider(s, wrong)
	file.upstream(s, wrong)
	file.injections(s, wrong)
	return wrong.result(s)
}

func (file *alphaFile) provider(s *settings, wrong *complaints) {
	if !wrong.check(len(file.Providers) == 1, "providers must have one entry") {
		return
	}
	p := file.Providers[0]
	wrong.check(p.Provider == "oidc", "provider must be oidc")
	wrong.check(p.CodeChallengeMethod == "S256", "code_challenge_method must be S256")
	wrong.check(p.OIDC.InsecureSkipNonce != nil && !*p.OIDC.InsecureSkipNonce, "insecureSkipNonce must be false")
	wrong.check(!p.OIDC.AllowUnverified, "insecureAllowUnverifiedEmail must be false")
	wrong.check(!p.OIDC.SkipIssuer, "insecureSkipIssuerVerification must be false")
	wrong.check(slices.Equal(p.OIDC.AudienceClaims, []string{"aud"}), "audienceClaims must be [aud]")
	wrong.check(p.OIDC.EmailClaim == "email", "emailClaim must be email")
	s.provider = providerSettings{
		clientID: p.ClientID, clientSecretFile: p.ClientSecretFile, scope: p.Scope, issuer: p.OIDC.IssuerURL,
		caFile: wrong.caFile(p.CAFiles), allowedParameters: map[string][]string{},
	}
	if p.OIDC.SkipDiscovery {
		s.provider.loginURL, s.provider.redeemURL = wrong.url("loginURL", p.LoginURL), wrong.url("redeemURL", p.RedeemURL)
		s.provider.jwkURL = wrong.url("jwksURL", p.OIDC.JWKSURL)
	}
	for _, parameter := range p.LoginURLParameters {
		for _, rule := range parameter.Allow {
			s.provider.allowedParameters[parameter.Name] = append(s.provider.allowedParameters[parameter.Name], rule.Value)
		}
	}
}

func (file *alphaFile) upstream(s *settings, wrong *complaints) {
	if !wrong.check(len(file.UpstreamConfig.Upstreams) == 1, "upstreams must have one entry") {
		return
	}
	u := file.UpstreamConfig.Upstreams[0]
	wrong.check(u.Path == "/", "the upstream's path must be /")
	s.upstream = upstreamSettings{uri: wrong.url("uri", u.URI), flushInterval: time.Second, timeout: 30 * time.Second}
	if u.FlushInterval != 0 {
		s.upstream.flushInterval = time.Duration(u.FlushInterval)
	}
	if u.Timeout != 0 {
		s.upstream.timeout = time.Duration(u.Timeout)
	}
}

func (file *alphaFile) injections(s *settings, wrong *complaints) {
	for _, header := range file.InjectRequestHeaders {
		wrong.check(header.Name != "", "a header in injectRequestHeaders has no name")
		wrong.check(!header.PreserveRequestValue, "preserveRequestValue must be false for "+header.Name)
		if len(header.Values) == 0 {
			s.inject = append(s.inject, injection{name: header.Name})
			continue
		}
		if wrong.check(len(header.Values) == 1, "one value only for "+header.Name) {
			s.inject = append(s.inject, injection{name: header.Name, value: header.Values[0].maker(header.Name, wrong)})
		}
	}
}

// maker reads a secret now and never again, byte for byte: that is what the real one does, newline and all.
func (v valueAlpha) maker(header string, wrong *complaints) func(string) string {
	switch {
	case v.Secret != nil && v.Claim == nil:
		secret := wrong.secret(header, v.Secret)
		return func(string) string { return secret }
	case v.Claim != nil && v.Secret == nil:
		wrong.check(v.Claim.Claim == "email", "only the claim email can be put into "+header)
		if v.Claim.BasicAuthPassword == nil {
			return func(person string) string { return v.Claim.Prefix + person }
		}
		secret := wrong.secret(header, v.Claim.BasicAuthPassword)
		return func(person string) string {
			return "Basic " + base64.StdEncoding.EncodeToString([]byte(person+":"+secret))
		}
	}
	wrong.check(false, "a value of "+header+" needs either secretSource or claimSource")
	return nil
}

// common takes the keys of both instances. What the stand-in can do in one way only must be set to that way.
func (file *coreFile) common() (*settings, *complaints) {
	wrong := &complaints{}
	wrong.check(len(file.EmailDomains) == 0, "email_domains must be empty: it opens the door beside the list")
	wrong.check(file.EmailsFile != "", "authenticated_emails_file is missing")
	wrong.check(file.CookieName != "", "cookie_name is missing")
	wrong.check(file.CookiePath == "" || file.CookiePath == "/", "cookie_path must be /")
	wrong.check(file.CookieSameSite == "lax", "cookie_samesite must be lax")
	wrong.check(file.CookieRefresh == 0, "cookie_refresh must be absent")
	wrong.check(file.CSRFPerRequest, "cookie_csrf_per_request must be true")
	wrong.check(file.SessionMinimal, "session_cookie_minimal must be true")
	wrong.check(file.SkipProviderButton, "skip_provider_button must be true")
	wrong.check(file.RequestLogging != nil && !*file.RequestLogging, "request_logging must be false")
	s := &settings{
		redirectURL: wrong.url("redirect_url", file.RedirectURL), reverseProxy: file.ReverseProxy,
		whitelistDomains: file.WhitelistDomains, whitelistFile: file.EmailsFile, templatesDir: file.TemplatesDir,
		cookie: cookieSettings{
			name: file.CookieName, sameSite: file.CookieSameSite, domains: file.CookieDomains,
			expire: 168 * time.Hour, csrfExpire: 15 * time.Minute,
			secure: file.CookieSecure, httpOnly: file.CookieHTTPOnly, csrfLimit: file.CSRFPerRequestLimit,
		},
	}
	if file.CookieExpire != 0 {
		s.cookie.expire = time.Duration(file.CookieExpire)
	}
	if file.CSRFExpire != 0 {
		s.cookie.csrfExpire = time.Duration(file.CSRFExpire)
	}
	s.cookie.key = wrong.cookieKey(file.CookieSecretFile)
	for _, pattern := range file.APIRoutes {
		compiled, err := regexp.Compile(pattern)
		wrong.check(err == nil, fmt.Sprintf("api_routes: %v", err))
		s.apiRoutes = append(s.apiRoutes, compiled)
	}
	wrong.check(!file.ReverseProxy || len(file.TrustedProxyIPs) > 0, "reverse_proxy without trusted_proxy_ips trusts everybody")
	for _, text := range file.TrustedProxyIPs {
		prefix, err := netip.ParsePrefix(text)
		if address, plain := netip.ParseAddr(text); plain == nil {
			prefix, err = netip.PrefixFrom(address, address.BitLen()), nil
		}
		wrong.check(err == nil, fmt.Sprintf("trusted_proxy_ips: %v", err))
		s.trustedProxies = append(s.trustedProxies, prefix)
	}
	return s, wrong
}

// complaints collects what is wrong.
type complaints struct{ list []string }

func (c *complaints) check(ok bool, sentence string) bool {
	if !ok {
		c.list = append(c.list, sentence)
	}
	return ok
}

func (c *complaints) url(key, text string) *url.URL {
	parsed, err := url.Parse(text)
	c.check(err == nil && parsed.Scheme != "" && parsed.Host != "", key+" must be an address such as https://host/path")
	return parsed
}

func (c *complaints) secret(header string, source *secretFile) string {
	content, err := os.ReadFile(source.FromFile)
	c.check(err == nil, fmt.Sprintf("the secret for %s: %v", header, err))
	return string(content)
}

func (c *complaints) caFile(paths []string) string {
	if c.check(len(paths) < 2, "one file with certificate authorities is all the stand-in reads") && len(paths) == 1 {
		return paths[0]
	}
	return ""
}

func (c *complaints) cookieKey(path string) []byte {
	content, err := os.ReadFile(path)
	if !c.check(err == nil, fmt.Sprintf("cookie_secret_file: %v", err)) {
		return nil
	}
	for _, key := range [][]byte{decoded(string(content)), content} {
		if n := len(key); n == 16 || n == 24 || n == 32 {
			return key
		}
	}
	c.check(false, fmt.Sprintf("cookie_secret_file must hold 16, 24 or 32 bytes, plain or as URL-safe base64, and holds %d", len(content)))
	return nil
}

func decoded(text string) []byte {
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(text, "="))
	if err != nil {
		return nil
	}
	return raw
}

func (c *complaints) result(s *settings) (*settings, error) {
	c.check(s.bind != "" && s.metricsBind != "", "both listen addresses are needed, the metrics' too")
	c.check(s.provider.clientID != "" && s.provider.issuer != "" && s.provider.scope != "", "client, issuer and scope are needed")
	if _, err := os.ReadFile(s.provider.clientSecretFile); err != nil {
		c.check(false, fmt.Sprintf("the client secret: %v", err))
	}
	if len(c.list) > 0 {
		return nil, errors.New("invalid configuration:\n  " + strings.Join(c.list, "\n  "))
	}
	return s, nil
}

func readTOML(path string, into any) error {
	found, err := toml.DecodeFile(path, into)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if unknown := found.Undecoded(); len(unknown) > 0 {
		return fmt.Errorf("%s has invalid keys, unknown to the stand-in: %v", path, unknown)
	}
	return nil
}

func readYAML(path string, into any) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	// The real one replaces $NAME from the environment before it parses. No file of ours has one; a secret with a
	// dollar would be cut.
	if strings.Contains(string(content), "$") {
		return fmt.Errorf("%s holds a dollar sign, which the real oauth2-proxy replaces from its environment", path)
	}
	decoder := yaml.NewDecoder(strings.NewReader(string(content)))
	decoder.KnownFields(true)
	if err := decoder.Decode(into); err != nil {
		return fmt.Errorf("%s, unknown to the stand-in: %w", path, err)
	}
	return nil
}

package main

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	x509authn "k8s.io/apiserver/pkg/authentication/request/x509"
	"k8s.io/client-go/transport"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"
	bootstrapsecrets "k8s.io/cluster-bootstrap/util/secrets"
)

// apiBackend is where kube-apiserver listens, on the port that k3s tells the world. The supervisor has that port on all
// other addresses; so the API's Endpoints name the right one, for which k3s patches Kubernetes.
const apiBackend = "127.0.0.2"

// joinGroup is the group that a bootstrap token must name.
const joinGroup = "system:bootstrappers:k3s:default-node-token"

const notReady = "apiserver not ready"

// supervisor answers on port 6443: what joining nodes ask, and for everything else the API server behind it.
type supervisor struct {
	*node
	cluster *cluster // of this host's API server; whether that answers shows when it is asked
	api     http.Handler
	own     *http.ServeMux
}

// startSupervisor listens before the datastore and the API server run, as k3s does: `pong` proves a listener only.
func (n *node) startSupervisor(ctx context.Context, cl *cluster) error {
	authorities := x509.NewCertPool()
	raw, err := os.ReadFile(n.dirs.tls("client-ca.crt"))
	if err != nil {
		return err
	}
	authorities.AppendCertsFromPEM(raw)
	cert, err := tls.LoadX509KeyPair(n.dirs.tls("serving-kube-apiserver.crt"), n.dirs.tls("serving-kube-apiserver.key"))
	if err != nil {
		return err
	}
	s := &supervisor{node: n, cluster: cl}
	if s.api, err = n.apiProxy(authorities); err != nil {
		return err
	}
	s.routes()
	share := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		controlErr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) // kube-apiserver has the port on apiBackend
		})
		return errors.Join(err, controlErr)
	}}
	listener, err := share.Listen(ctx, "tcp4", net.JoinHostPort(n.bindAddress, n.port))
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: s,
		// A certificate of another authority is for the authenticator to refuse, not for the handshake.
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert, ClientCAs: authorities},
		ReadHeaderTimeout: 30 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0), // each health check by plain TCP would be a line
	}
	go func() {
		if err := server.ServeTLS(elsewhere{listener}, "", ""); err != nil {
			logrus.Errorf("Supervisor: %v", err)
		}
	}()
	return nil
}

// elsewhere is the port on every address but apiBackend: while kube-apiserver does not listen there, the kernel hands its
// connections to the supervisor, which would ask itself, and keep the connection for later requests.
type elsewhere struct{ net.Listener }

func (l elsewhere) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if host, _, err := net.SplitHostPort(conn.LocalAddr().String()); err == nil && host != apiBackend {
			return conn, nil
		}
		conn.Close()
	}
}

func (s *supervisor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for _, prefix := range []string{"/ping", "/cacerts", "/v1-k3s/", "/db/"} {
		if strings.HasPrefix(r.URL.Path, prefix) {
			s.own.ServeHTTP(w, r)
			return
		}
	}
	s.api.ServeHTTP(w, r) // past any mux, which would redirect paths with a double slash
}

// routes are those of contract §4. Users: "node" stands for node and bootstrap tokens, "server" for the server token.
func (s *supervisor) routes() {
	s.own = http.NewServeMux()
	s.own.HandleFunc("GET /ping", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "pong") })
	s.own.HandleFunc("GET /cacerts", s.file("server-ca.crt"))
	node := func(pattern string, handle http.HandlerFunc) {
		s.own.HandleFunc(pattern, s.only(handle, "node", "server"))
	}
	node("GET /v1-k3s/client-ca.crt", s.file("client-ca.crt"))
	node("GET /v1-k3s/server-ca.crt", s.file("server-ca.crt"))
	node("GET /v1-k3s/config", func(w http.ResponseWriter, _ *http.Request) { answer(w, offer{s.network, s.critical()}, nil) })
	node("GET /v1-k3s/apiservers", func(w http.ResponseWriter, r *http.Request) {
		servers, err := s.cluster.apiServers(r.Context())
		answer(w, servers, err)
	})
	node("GET /v1-k3s/readyz", func(w http.ResponseWriter, r *http.Request) {
		answer(w, "ok", s.cluster.core.RESTClient().Get().AbsPath("/readyz").Do(r.Context()).Error())
	})
	server := func(pattern string, handle http.HandlerFunc) { s.own.HandleFunc(pattern, s.only(handle, "server")) }
	server("GET /v1-k3s/server-bootstrap", func(w http.ResponseWriter, _ *http.Request) {
		files, err := s.dirs.readBootstrap()
		answer(w, files, err)
	})
	server("PUT /v1-k3s/token", s.rotateToken)
	server("GET /v1-k3s/encrypt/status", s.encryptionStatus)
	server("POST /v1-k3s/encrypt/rotate-keys", s.rotateKeys)
	server("GET /db/info", s.dbInfo)
	server("POST /db/snapshot", s.dbSnapshot)
	node("POST /v1-k3s/client-kubelet.crt", s.forNode("client-ca", func(r *http.Request, name string) leaf {
		return leaf{name: "system:node:" + name, org: []string{"system:nodes"}}
	}))
	node("POST /v1-k3s/serving-kubelet.crt", s.forNode("server-ca", func(r *http.Request, name string) leaf {
		return leaf{name: name, hosts: append([]string{name, "localhost", "127.0.0.1"}, strings.Split(r.Header.Get(headerIP), ",")...)}
	}))
	node("POST /v1-k3s/client-kube-proxy.crt", s.forNode("client-ca", func(*http.Request, string) leaf {
		return leaf{name: "system:kube-proxy"}
	}))
}

// only lets a request through that authenticates as one of the users.
func (s *supervisor) only(next http.HandlerFunc, users ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		user, err := s.user(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		} else if user == "" {
			http.Error(w, "not authorized", http.StatusUnauthorized)
		} else if !slices.Contains(users, user) {
			http.Error(w, "forbidden", http.StatusForbidden)
		} else {
			next(w, r)
		}
	}
}

// user tells who sends a request: "node", "server" or "" for nobody we know.
func (s *supervisor) user(r *http.Request) (string, error) {
	name, secret, ok := r.BasicAuth()
	same := func(want string) bool { return subtle.ConstantTimeCompare([]byte(secret), []byte(want)) == 1 }
	s.tokens.RLock()
	serverSecret, nodeSecret := s.serverSecret, s.agentSecret
	s.tokens.RUnlock()
	if nodeSecret == "" {
		nodeSecret = serverSecret
	}
	switch {
	case !ok:
		return "", nil
	case name == "server" && same(serverSecret):
		return "server", nil
	case name == "node" && same(nodeSecret):
		return "node", nil
	case !bootstrapID.MatchString(name):
		return "", nil
	}
	token, err := s.cluster.core.Secrets("kube-system").Get(r.Context(), bootstrapapi.BootstrapTokenSecretPrefix+name, metav1.GetOptions{})
	if err != nil {
		return "", notFoundIsNil(err)
	}
	groups, err := bootstrapsecrets.GetGroups(token)
	if err != nil || !slices.Contains(groups, joinGroup) || bootstrapsecrets.HasExpired(token, time.Now()) ||
		!same(bootstrapsecrets.GetData(token, bootstrapapi.BootstrapTokenSecretKey)) ||
		bootstrapsecrets.GetData(token, bootstrapapi.BootstrapTokenUsageAuthentication) != "true" {
		return "", nil
	}
	return "node", nil
}

func (s *supervisor) file(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, s.dirs.tls(name)) }
}

// answer sends JSON, or the error: what the API server refuses or cannot do yet is tried again by whoever asks.
func answer(w http.ResponseWriter, value any, err error) {
	if err != nil {
		http.Error(w, fmt.Sprintf("%s: %v", notReady, err), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(value); err != nil {
		logrus.Warnf("Supervisor: %v", err)
	}
}

// forNode signs a request for a certificate, for the host that knows the password of the node named in the headers.
func (s *supervisor) forNode(ca string, describe func(r *http.Request, name string) leaf) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		name, password := r.Header.Get(headerName), r.Header.Get(headerPassword)
		if len(validation.IsDNS1123Subdomain(name)) > 0 || password == "" {
			http.Error(w, "node name or password not set", http.StatusBadRequest)
			return
		}
		if err := s.cluster.checkNodePassword(r.Context(), name, password); errors.Is(err, errNodePassword) {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		} else if err != nil {
			answer(w, nil, err)
			return
		}
		body, err := io.ReadAll(io.LimitReader(r.Body, 1<<16))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		request, err := parseRequest(body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		authority, err := ensureCA(s.dirs.tls(ca), ca)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		cert, err := sign(describe(r, name), authority, request.PublicKey)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if _, err := w.Write(cert); err != nil {
			logrus.Warnf("Supervisor: %v", err)
		}
	}
}

func parseRequest(raw []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, errors.New("no PEM certificate request")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	return request, request.CheckSignature() // whoever asks has the key
}

// apiProxy passes requests on to kube-apiserver. Who came with a certificate is told by the front-proxy headers, with the
// front proxy's certificate; a token goes through as it is, and the API server refuses what has neither.
func (n *node) apiProxy(authorities *x509.CertPool) (http.Handler, error) {
	ca := x509.NewCertPool()
	raw, err := os.ReadFile(n.dirs.tls("server-ca.crt"))
	if err != nil {
		return nil, err
	}
	ca.AppendCertsFromPEM(raw)
	front, err := tls.LoadX509KeyPair(n.dirs.tls("client-auth-proxy.crt"), n.dirs.tls("client-auth-proxy.key"))
	if err != nil {
		return nil, err
	}
	to := func(certs ...tls.Certificate) *http.Transport { // HTTP/1.1: a connection may be taken over by exec or port-forward
		return &http.Transport{
			TLSClientConfig:     &tls.Config{RootCAs: ca, ServerName: "kubernetes", Certificates: certs},
			MaxIdleConnsPerHost: 50, IdleConnTimeout: time.Minute, DisableCompression: true,
		}
	}
	verify := x509authn.DefaultVerifyOptions()
	verify.Roots = authorities
	authenticator := x509authn.New(verify, x509authn.CommonNameUserConversion)
	proxy := func(transport http.RoundTripper) *httputil.ReverseProxy {
		return &httputil.ReverseProxy{
			Transport:     transport,
			FlushInterval: -1, // watches
			ErrorLog:      log.New(io.Discard, "", 0),
			Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(&url.URL{Scheme: "https", Host: net.JoinHostPort(apiBackend, n.port)})
				r.Out.Host = r.In.Host
				r.SetXForwarded()
			},
			ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) { answer(w, nil, err) },
		}
	}
	asFront, asIs := proxy(to(front)), proxy(to())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name := range r.Header {
			if strings.HasPrefix(name, "X-Remote-") { // ours to say
				delete(r.Header, name)
			}
		}
		if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
			asIs.ServeHTTP(w, r)
			return
		}
		found, ok, err := authenticator.AuthenticateRequest(r)
		if err != nil || !ok {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		transport.SetAuthProxyHeaders(r, found.User.GetName(), found.User.GetUID(), found.User.GetGroups(), found.User.GetExtra())
		asFront.ServeHTTP(w, r)
	}), nil
}

// apiServers gives address and port of every API server that is alive.
func (c *cluster) apiServers(ctx context.Context) ([]string, error) {
	found, err := c.core.Endpoints("default").Get(ctx, "kubernetes", metav1.GetOptions{}) //nolint:staticcheck // one short list
	if err != nil {
		return nil, err
	}
	out := []string{}
	for _, subset := range found.Subsets {
		for _, port := range subset.Ports {
			for _, address := range subset.Addresses {
				out = append(out, net.JoinHostPort(address.IP, fmt.Sprint(port.Port)))
			}
		}
	}
	slices.Sort(out)
	return out, nil
}

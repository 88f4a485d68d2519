package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"os"
	"path/filepath"
	"sync"
)

const plainPage = `<!DOCTYPE html><html lang="en"><title>{{.StatusCode}} {{.Title}}</title><h1>{{.Title}}</h1><p>{{.Message}}</p></html>`

// pages renders error.html of the templates directory; read once, at the start.
type pages struct{ failed *template.Template }

// fault has the fields that the real one gives to error.html; a template that asks for another fails on both.
type fault struct {
	Title, Message, ProxyPrefix string
	StatusCode                  int
	Redirect, RequestID         string
	Footer                      template.HTML
	Version                     string
}

func newPages(directory string) (*pages, error) {
	text, err := os.ReadFile(filepath.Join(directory, "error.html"))
	if directory == "" || errors.Is(err, os.ErrNotExist) {
		text, err = []byte(plainPage), nil
	}
	if err != nil {
		return nil, err
	}
	parsed, err := template.New("error.html").Parse(string(text))
	if err != nil {
		return nil, fmt.Errorf("custom_templates_dir: %w", err)
	}
	// Never shown (skip_provider_button), but read at the start, so that one that does not parse is found here too.
	unused := filepath.Join(directory, "sign_in.html")
	if _, err := os.Stat(unused); directory != "" && err == nil {
		if _, err := template.ParseFiles(unused); err != nil {
			return nil, fmt.Errorf("custom_templates_dir: %w", err)
		}
	}
	return &pages{parsed}, nil
}

func (p *proxy) page(w http.ResponseWriter, r *http.Request, status int, message string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	target := "" // a page about the upstream leads nowhere, and its request's body may still be arriving
	if status != http.StatusBadGateway {
		target = p.wanted(r)
	}
	err := p.pages.failed.Execute(w, fault{
		Title: http.StatusText(status), Message: message, ProxyPrefix: prefix, StatusCode: status, Redirect: target,
		RequestID: hex.EncodeToString(random()[:8]), Version: version,
	})
	if err != nil {
		problems.Printf("error.html: %v", err)
	}
}

// metrics counts answers by status, on the port of its own.
type metrics struct {
	lock  sync.Mutex
	codes map[int]int
}

func (m *metrics) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	m.lock.Lock()
	defer m.lock.Unlock()
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	fmt.Fprint(w, "# TYPE oauth2_proxy_requests_total counter\n") //nolint:errcheck // the client is gone
	for code, count := range m.codes {
		fmt.Fprintf(w, "oauth2_proxy_requests_total{code=\"%d\"} %d\n", code, count) //nolint:errcheck // the client is gone
	}
}

func (m *metrics) counted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		kept := &noted{ResponseWriter: w, code: http.StatusOK}
		// Deferred: a cut upstream aborts the handler with a panic.
		defer func() {
			m.lock.Lock()
			defer m.lock.Unlock()
			m.codes[kept.code]++
		}()
		next.ServeHTTP(kept, r)
	})
}

type noted struct {
	http.ResponseWriter
	code int
}

func (n *noted) WriteHeader(code int) {
	if code >= http.StatusOK {
		n.code = code
	}
	n.ResponseWriter.WriteHeader(code)
}

// Unwrap lets the reverse proxy flush each chunk and take over the connection of a websocket.
func (n *noted) Unwrap() http.ResponseWriter { return n.ResponseWriter }

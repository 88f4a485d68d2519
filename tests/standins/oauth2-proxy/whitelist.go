package main

import (
	"encoding/csv"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// How soon a changed list counts. The real one is woken by the kernel within milliseconds.
const lookEvery = 10 * time.Millisecond

// whitelist holds the addresses that may come in: the first column of a CSV file, swapped whole when the file changes.
type whitelist struct {
	path   string
	people atomic.Pointer[map[string]bool]
}

// newWhitelist needs the file to be there; a list that cannot be read as CSV admits nobody until it is mended.
func newWhitelist(path string) (*whitelist, error) {
	w := &whitelist{path: path}
	w.people.Store(&map[string]bool{})
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("authenticated_emails_file: %w", err)
	}
	w.read()
	return w, nil
}

func (w *whitelist) has(address string) bool {
	return address != "" && (*w.people.Load())[strings.ToLower(address)]
}

// watch looks at the file that the path leads to now: Kubernetes swaps a symbolic link on the way.
func (w *whitelist) watch() {
	seen, _ := os.Stat(w.path)
	for {
		time.Sleep(lookEvery)
		now, err := os.Stat(w.path)
		if err != nil {
			continue // it vanished: the old list stays until it is back
		}
		if seen != nil && os.SameFile(seen, now) && seen.ModTime().Equal(now.ModTime()) && seen.Size() == now.Size() {
			continue
		}
		seen = now
		w.read()
		events.Printf("watching resumed for '%s'", w.path)
	}
}

// read keeps the old list when the new one is malformed: so does the real one, which is why a removed person can
// stay in and why the module email_whitelist refuses such a list.
func (w *whitelist) read() {
	file, err := os.Open(w.path)
	if err != nil {
		problems.Printf("error reading authenticated-emails-file=%q, %s", w.path, err)
		return
	}
	defer file.Close() //nolint:errcheck // read only
	reader := csv.NewReader(file)
	reader.Comment = '#'
	reader.TrimLeadingSpace = true
	rows, err := reader.ReadAll()
	if err != nil {
		problems.Printf("error reading authenticated-emails-file=%q, %s", w.path, err)
		return
	}
	people := map[string]bool{}
	for _, row := range rows {
		people[strings.ToLower(strings.TrimSpace(row[0]))] = true
	}
	w.people.Store(&people)
}

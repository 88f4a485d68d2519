package main

import (
	"testing"
	"time"
)

// S26: the four states, by the time of day; an authority is named as one.
func TestCertificates(t *testing.T) {
	d := dirs{t.TempDir()}
	if err := ensurePKI(d, "h1", []string{"localhost"}, []string{"localhost"}); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for want, at := range map[string]time.Time{
		"OK": now, "WARNING": now.Add(leafLife - renewUnder + day), "EXPIRED": now.Add(leafLife + day), "NOT YET VALID": now.Add(-day),
	} {
		found, err := certificates(d, at)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]certificate{}
		for _, one := range found {
			seen[one.Filename] = one
		}
		if got := seen["client-admin.crt"]; got.Status != want || got.Usages[0] != "ClientAuth" {
			t.Errorf("%s: %+v", want, got)
		}
		if got := seen["server-ca.crt"]; want == "EXPIRED" && (got.Status != "OK" || got.Usages[0] != "CertSign") {
			t.Errorf("an authority outlives its certificates: %+v", got)
		}
	}
}

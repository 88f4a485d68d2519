package main

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sirupsen/logrus"
	"sigs.k8s.io/yaml"
)

// certificate is one entry of `k3s certificate check`.
type certificate struct {
	Filename, Subject, Issuer string
	Usages                    []string
	ExpiryTime                time.Time
	ResidualTime              time.Duration
	Status                    string
}

// runCertificate is `k3s certificate check` and `rotate`. check ends with 0 whatever it finds, as with k3s.
func runCertificate(args []string) error {
	if len(args) == 0 || !slices.Contains([]string{"check", "rotate"}, args[0]) {
		return fmt.Errorf("of `k3s certificate` this stand-in has check and rotate (%s)", banner)
	}
	flags := flag.NewFlagSet("k3s certificate", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	output, services := "text", ""
	for _, name := range []string{"o", "output"} {
		flags.StringVar(&output, name, output, "")
	}
	for _, name := range []string{"s", "service"} {
		flags.StringVar(&services, name, services, "")
	}
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	d := dirs{dataDirOf(defaultConfig)}
	if args[0] == "rotate" {
		if services != "" {
			return fmt.Errorf("rotating single services is not in this stand-in (%s)", banner)
		}
		return rotateCertificates(d)
	}
	found, err := certificates(d, time.Now())
	if err != nil {
		return err
	}
	return printCertificates(os.Stdout, output, found)
}

// certificates reads the first certificate of every file, which is the one in use.
func certificates(d dirs, now time.Time) ([]certificate, error) {
	out := []certificate{}
	for _, folder := range []string{d.tls(), d.agent()} {
		err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || filepath.Ext(path) != ".crt" {
				if entry != nil && entry.IsDir() && folder == d.agent() && path != folder {
					return fs.SkipDir // images and containers
				}
				return err
			}
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			cert, err := parseCert(raw)
			if err != nil {
				return wrapf(err, "%s", path)
			}
			out = append(out, describe(path, cert, now))
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func describe(path string, cert *x509.Certificate, now time.Time) certificate {
	one := certificate{Filename: filepath.Base(path), Subject: cert.Subject.String(), Issuer: cert.Issuer.String(), Usages: []string{},
		ExpiryTime: cert.NotAfter, ResidualTime: max(0, cert.NotAfter.Sub(now)), Status: "OK"}
	if cert.IsCA {
		one.Usages = append(one.Usages, "CertSign")
	}
	for _, usage := range cert.ExtKeyUsage {
		one.Usages = append(one.Usages, map[x509.ExtKeyUsage]string{x509.ExtKeyUsageClientAuth: "ClientAuth", x509.ExtKeyUsageServerAuth: "ServerAuth"}[usage])
	}
	switch {
	case now.Before(cert.NotBefore):
		one.Status = "NOT YET VALID"
	case now.After(cert.NotAfter):
		one.Status = "EXPIRED"
	case one.ResidualTime < renewUnder:
		one.Status = "WARNING"
	}
	return one
}

func printCertificates(to io.Writer, form string, found []certificate) error {
	switch form {
	case "json":
		return json.NewEncoder(to).Encode(map[string]any{"Certificates": found})
	case "yaml":
		text, err := yaml.Marshal(map[string]any{"Certificates": found})
		if err == nil {
			_, err = to.Write(text)
		}
		return err
	case "table":
		table := tabwriter.NewWriter(to, 0, 0, 3, ' ', 0)
		fmt.Fprint(table, "FILENAME\tSUBJECT\tUSAGES\tEXPIRES\tRESIDUAL TIME\tSTATUS\n")
		for _, c := range found {
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", c.Filename, c.Subject, strings.Join(c.Usages, ","), c.ExpiryTime.Format(time.RFC3339), c.ResidualTime.Round(time.Hour), c.Status)
		}
		return table.Flush()
	}
	for _, c := range found {
		logrus.Infof("%s: certificate %s is %s, expires at %s", c.Filename, c.Subject, strings.ToLower(c.Status), c.ExpiryTime.Format(time.RFC3339))
	}
	return nil
}

// rotateCertificates keeps a copy and removes what the next start makes anew: every certificate but the authorities'.
func rotateCertificates(d dirs) error {
	if conn, err := net.DialTimeout("tcp", "127.0.0.1:6444", time.Second); err == nil {
		conn.Close()
		return errors.New("k3s is running: stop it before its certificates are rotated")
	}
	backup := fmt.Sprintf("%s-%d", d.tls(), time.Now().Unix())
	if err := os.CopyFS(backup, os.DirFS(d.tls())); err != nil {
		return err
	}
	if err := os.Chmod(backup, 0o700); err != nil {
		return err
	}
	found, err := filepath.Glob(d.tls("*.crt"))
	if err != nil {
		return err
	}
	for _, folder := range []string{d.tls("etcd"), d.agent()} {
		more, err := filepath.Glob(filepath.Join(folder, "*.crt"))
		if err != nil {
			return err
		}
		found = append(found, more...)
	}
	for _, path := range found {
		if strings.HasSuffix(path, "-ca.crt") {
			continue
		}
		if err := errors.Join(os.Remove(path), os.Remove(strings.TrimSuffix(path, ".crt")+".key")); err != nil {
			return err
		}
	}
	logrus.Infof("Successfully backed up certificates to %s, please restart k3s server or agent to rotate certificates", backup)
	return nil
}

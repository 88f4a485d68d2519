// Command oauth2-proxy stands in for the real oauth2-proxy where no registry has it: in CI and on the test bed.
//
// It is no copy. It reads the files that the role oauth2_proxy renders, dies on any key or value that it does not act
// on, and honours the contract C1 to C35 of docs/access.md, which tests/contract checks on it and on the real one.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

const version = "oauth2-proxy standin (Hearth's stand-in, honours the contract in docs/access.md; it is not the real oauth2-proxy)"

// The real one writes what happens to standard output and what went wrong to standard error.
var (
	events   = log.New(os.Stdout, "standin: ", log.LstdFlags|log.LUTC)
	problems = log.New(os.Stderr, "standin: ", log.LstdFlags|log.LUTC)
)

func main() {
	flags := flag.NewFlagSet("oauth2-proxy", flag.ContinueOnError)
	core := flags.String("config", "", "core configuration (TOML)")
	alpha := flags.String("alpha-config", "", "alpha configuration (YAML)")
	test := flags.Bool("config-test", false, "check the configuration and exit")
	showVersion := flags.Bool("version", false, "print the version")
	if err := flags.Parse(os.Args[1:]); err != nil || flags.NArg() > 0 {
		os.Exit(2)
	}
	if *showVersion {
		fmt.Println(version)
		return
	}
	settings, err := load(*core, *alpha)
	if err != nil {
		die(err)
	}
	if *test {
		fmt.Println("configuration is valid")
		return
	}
	if err := run(settings); err != nil {
		die(err)
	}
}

func die(err error) {
	problems.Print("ERROR: ", err)
	os.Exit(1)
}

// run serves until SIGTERM, then closes the listeners at once and lets open requests finish, however long they take.
func run(settings *settings) error {
	allowed, err := newWhitelist(settings.whitelistFile)
	if err != nil {
		return err
	}
	pages, err := newPages(settings.templatesDir)
	if err != nil {
		return err
	}
	proxy, err := newProxy(settings, allowed, pages)
	if err != nil {
		return err
	}
	counts := &metrics{codes: map[int]int{}}
	main, err := net.Listen("tcp", settings.bind)
	if err != nil {
		return err
	}
	side, err := net.Listen("tcp", settings.metricsBind)
	if err != nil {
		return err
	}
	go allowed.watch()

	// Never unregistered, so that a second SIGTERM changes nothing.
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)

	servers := []*http.Server{{Handler: counts.counted(proxy)}, {Handler: counts}}
	ended := make(chan error, len(servers))
	for i, listener := range []net.Listener{main, side} {
		go func() { ended <- servers[i].Serve(listener) }()
	}
	events.Printf("%s: listening on %s", version, settings.bind)
	select {
	case err := <-ended:
		return err
	case <-stop:
	}
	var failed []error
	for _, server := range servers {
		failed = append(failed, server.Shutdown(context.Background()))
	}
	return errors.Join(failed...)
}

// refuseEnvironment: the real one lets OAUTH2_PROXY_* variables override its files, so an e-mail domain in the
// environment opens the door. Kubernetes makes such names by itself (service links). The role sets neither.
func refuseEnvironment(environment []string) error {
	for _, variable := range environment {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "OAUTH2_PROXY_") {
			return fmt.Errorf("the environment holds %s, which can override the configuration: remove it (no envFrom, enableServiceLinks: false)", name)
		}
	}
	return nil
}

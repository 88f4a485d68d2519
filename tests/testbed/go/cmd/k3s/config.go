package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v2" // YAML 1.1, as k3s reads it: `on` is a boolean and 0644 is the number 420
)

const defaultConfig = "/etc/rancher/k3s/config.yaml"

// settings are the merged values of one `k3s server` or `k3s agent`: each key with all its values, in order.
type settings struct {
	values   map[string][]string
	warnings []string // what k3s logs and goes on: unknown keys of a server
}

// load merges configuration file, drop-ins, environment and command line, the command line winning, lists
// included. A server drops unknown keys of the file with a warning; an agent fails on them (contract §0.1).
func load(role string, args []string, environ func(string) string) (*settings, error) {
	fromArgs, err := parseFlags(role, args)
	if err != nil {
		return nil, err
	}
	path, chosen := last(fromArgs["config"]), true
	if path == "" {
		path = environ("K3S_CONFIG_FILE")
	}
	if path == "" {
		path, chosen = defaultConfig, false
	}
	fileArgs, err := readConfig(path, chosen)
	if err != nil {
		return nil, err
	}
	out := &settings{values: map[string][]string{}}
	if role == "server" {
		fileArgs, out.warnings = dropUnknown(fileArgs)
	}
	fromFile, err := parseFlags(role, fileArgs)
	if err != nil {
		return nil, err
	}
	for _, k := range keysOf(role) {
		switch {
		case len(fromArgs[k.name]) > 0:
			out.values[k.name] = fromArgs[k.name]
		case len(fromFile[k.name]) > 0:
			out.values[k.name] = fromFile[k.name]
		case k.env != "" && environ(k.env) != "":
			value := environ(k.env)
			if err := check(k.kind, value); err != nil {
				return nil, fmt.Errorf("environment variable %s: %w", k.env, err)
			}
			out.values[k.name] = []string{value}
		}
	}
	return out, nil
}

func keysOf(role string) []key {
	var out []key
	for _, k := range keys {
		if k.who == role || k.who == "both" {
			out = append(out, k)
		}
	}
	return out
}

// recorder collects the values of one key; flag.FlagSet calls it.
type recorder struct {
	kind valueKind
	into *[]string
}

func (r recorder) String() string   { return "" }
func (r recorder) IsBoolFlag() bool { return r.kind == flagBool }
func (r recorder) Set(value string) error {
	if err := check(r.kind, value); err != nil {
		return err
	}
	if r.kind != many {
		*r.into = nil
	}
	*r.into = append(*r.into, value)
	return nil
}

func check(kind valueKind, value string) error {
	var err error
	switch kind {
	case flagBool:
		_, err = strconv.ParseBool(value)
	case number:
		_, err = strconv.Atoi(value)
	}
	if err != nil {
		return errors.New("parse error")
	}
	return nil
}

// parseFlags reads arguments with Go's own flag rules, which are also those (and the error texts) of k3s.
func parseFlags(role string, args []string) (map[string][]string, error) {
	set := flag.NewFlagSet("k3s "+role, flag.ContinueOnError)
	set.SetOutput(io.Discard)
	values := map[string]*[]string{}
	for _, k := range keysOf(role) {
		into := new([]string)
		values[k.name] = into
		set.Var(recorder{k.kind, into}, k.name, "")
		if k.short != "" {
			set.Var(recorder{k.kind, into}, k.short, "")
		}
	}
	if err := set.Parse(args); err != nil {
		return nil, err
	}
	if set.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", set.Arg(0))
	}
	out := map[string][]string{}
	for name, into := range values {
		out[name] = *into
	}
	return out, nil
}

// readConfig turns the file and its drop-ins into arguments. Drop-ins count even where the file is missing.
func readConfig(path string, chosen bool) ([]string, error) {
	var files []string
	if _, err := os.Stat(path); err == nil {
		files = append(files, path)
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	entries, err := os.ReadDir(path + ".d")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, entry := range entries { // ReadDir sorts by name
		lower := strings.ToLower(entry.Name())
		if !entry.IsDir() && (strings.HasSuffix(lower, ".yaml") || strings.HasSuffix(lower, ".yml")) {
			files = append(files, filepath.Join(path+".d", entry.Name()))
		}
	}
	if len(files) == 0 && chosen {
		return nil, fmt.Errorf("open %s: no such file", path)
	}
	values := map[string]any{}
	var order []string
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var items yaml.MapSlice
		if err := yaml.Unmarshal(raw, &items); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		for _, item := range items {
			name, isAppend := strings.CutSuffix(fmt.Sprint(item.Key), "+")
			old, known := values[name]
			if !known {
				order = append(order, name)
			}
			if known && isAppend {
				values[name] = append(asList(old), asList(item.Value)...)
			} else {
				values[name] = item.Value
			}
		}
	}
	var args []string
	for _, name := range order {
		dashes := "--"
		if len(name) == 1 {
			dashes = "-"
		}
		items, isList := values[name].([]any)
		if !isList {
			items = []any{values[name]}
		}
		for _, item := range items {
			args = append(args, dashes+name+"="+asText(item))
		}
	}
	return args, nil
}

func asList(value any) []any {
	if items, ok := value.([]any); ok {
		return items
	}
	if value == nil {
		return nil
	}
	return []any{value}
}

func asText(value any) string {
	if value == nil {
		return ""
	}
	return fmt.Sprint(value)
}

func dropUnknown(args []string) (kept, warnings []string) {
	known := map[string]bool{}
	for _, k := range keysOf("server") {
		known[k.name] = true
		if k.short != "" {
			known[k.short] = true
		}
	}
	for _, arg := range args {
		name, _, _ := strings.Cut(arg, "=")
		if known[strings.TrimLeft(name, "-")] {
			kept = append(kept, arg)
		} else {
			warnings = append(warnings, fmt.Sprintf("Unknown flag %s found in config.yaml, skipping", name))
		}
	}
	return kept, warnings
}

func last(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[len(values)-1]
}

// text gives the last value of a key, or fallback.
func (s *settings) text(name, fallback string) string {
	if value := last(s.values[name]); value != "" {
		return value
	}
	return fallback
}

func (s *settings) isSet(name string) bool { return len(s.values[name]) > 0 }

func (s *settings) on(name string) bool {
	value, err := strconv.ParseBool(last(s.values[name]))
	return err == nil && value // check refused anything else when the value was read
}

// list gives all values of a key, split at commas where k3s does so.
func (s *settings) list(name string) []string {
	var out []string
	for _, value := range s.values[name] {
		parts := []string{value}
		if listsByComma[name] {
			parts = strings.Split(value, ",")
		}
		for _, part := range parts {
			if part = strings.TrimSpace(part); part != "" {
				out = append(out, part)
			}
		}
	}
	return out
}

// withoutEffect sorts the keys that were set into those to report and those to refuse.
func (s *settings) withoutEffect() (report, refuse []string) {
	for _, k := range keys {
		if !s.isSet(k.name) || k.kind == flagBool && !s.on(k.name) {
			continue
		}
		switch k.does {
		case accepted:
			report = append(report, k.name)
		case refused:
			refuse = append(refuse, k.name)
		}
	}
	sort.Strings(report)
	return report, refuse
}

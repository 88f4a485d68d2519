package payload

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// pack makes a launcher with a payload of one program.
func pack(t *testing.T) (path string, footer Footer) {
	t.Helper()
	folder := t.TempDir()
	if err := os.Mkdir(filepath.Join(folder, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "bin", "node"), bytes.Repeat([]byte("program "), 9999), 0o755); err != nil {
		t.Fatal(err)
	}
	out := bytes.NewBufferString("launcher")
	footer, err := Append(out, folder)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "k3s")
	if err := os.WriteFile(path, out.Bytes(), 0o755); err != nil {
		t.Fatal(err)
	}
	return path, footer
}

func unpackFile(t *testing.T, path, target string) error {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	footer, err := Find(file)
	if err != nil {
		return err
	}
	return Unpack(file, footer, target)
}

func TestRoundTrip(t *testing.T) {
	path, footer := pack(t)
	if _, again := pack(t); again.Hash() != footer.Hash() {
		t.Error("the same folder packed twice differs")
	}
	target := filepath.Join(t.TempDir(), footer.Hash())
	if err := os.MkdirAll(target+"-tmp/half", 0o755); err != nil { // what a power cut left
		t.Fatal(err)
	}
	if err := unpackFile(t, path, target); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(target, "bin", "node"))
	if err != nil || len(raw) != 8*9999 {
		t.Errorf("program: %d bytes, %v", len(raw), err)
	}
	if info, err := os.Stat(filepath.Join(target, "bin", "node")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("mode: %v, %v", info.Mode(), err)
	}
	if _, err := os.Stat(target + "-tmp"); !errors.Is(err, os.ErrNotExist) {
		t.Error("the half folder is still there")
	}
}

func TestDamaged(t *testing.T) {
	path, footer := pack(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(whole)
	flipped[len("launcher")+int(footer.Length)/2] ^= 1
	for name, content := range map[string][]byte{
		"cut": whole[:len(whole)-20], "launcher only": whole[:8], "empty": nil, "one bit": flipped,
	} {
		if err := os.WriteFile(path, content, 0o755); err != nil {
			t.Fatal(err)
		}
		target := filepath.Join(t.TempDir(), "data")
		if err := unpackFile(t, path, target); err == nil {
			t.Errorf("%s: was unpacked", name)
		}
		if _, err := os.Stat(target); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: left a folder that looks whole", name)
		}
	}
}

// Command k3spack appends a payload folder to a launcher, which makes the one file that the bed calls "k3s".
//
//	k3spack -payload DIR -launcher FILE -out FILE
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"hearth.test/bed/cmd/k3s/payload"
)

func main() {
	folder := flag.String("payload", "", "folder that becomes <data-dir>/data/<hash> on a host")
	launcher := flag.String("launcher", "", "the launcher, as built by `go build ./cmd/k3s`")
	out := flag.String("out", "", "the file to write")
	flag.Parse()
	if *folder == "" || *launcher == "" || *out == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	footer, err := pack(*folder, *launcher, *out)
	if err != nil {
		fmt.Fprintln(os.Stderr, "k3spack:", err)
		os.Exit(1)
	}
	fmt.Println(footer.Hash())
}

// required are the files without which the stand-in cannot start a server; a payload that lacks one is refused
// here rather than on a host.
var required = []string{
	"bin/node", "bin/containerd", "bin/containerd-shim-runc-v2", "bin/ctr", "bin/kine", "bin/runc",
	"bin/bridge", "bin/host-local", "bin/loopback", "bin/portmap", "images",
}

func pack(folder, launcher, out string) (payload.Footer, error) {
	var none payload.Footer
	var missing []error
	for _, name := range required {
		if _, err := os.Stat(filepath.Join(folder, name)); err != nil {
			missing = append(missing, err)
		}
	}
	if err := errors.Join(missing...); err != nil {
		return none, err
	}
	in, err := os.Open(launcher)
	if err != nil {
		return none, err
	}
	defer in.Close()
	if _, err := payload.Find(in); !errors.Is(err, payload.ErrNone) {
		return none, errors.New("the launcher has a payload already")
	}
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return none, err
	}
	half, err := os.OpenFile(out+".part", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return none, err
	}
	defer half.Close()
	if _, err := io.Copy(half, in); err != nil {
		return none, err
	}
	footer, err := payload.Append(half, folder)
	if err := errors.Join(err, half.Chmod(0o755), half.Close()); err != nil {
		return none, err
	}
	return footer, os.Rename(half.Name(), out)
}

// Package payload is the file format of the k3s stand-in: a launcher with a zstd-compressed tar behind it.
//
// Layout of the file: launcher, compressed tar, footer. The footer has a fixed size so that a launcher finds
// it by reading its own end: 32 bytes SHA-256 of the compressed tar, 8 bytes its length (big endian), 16 bytes
// magic. The checksum names the folder into which the tar is unpacked, as k3s does with its own data.
package payload

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

const (
	magic      = "HEARTH-K3S-BED1\n"
	footerSize = sha256.Size + 8 + len(magic)
)

// ErrNone says that a file ends without a footer: a launcher that was never packed, or one that was cut.
var ErrNone = errors.New("the file has no payload: it was not packed by k3spack, or its end is missing")

// Footer describes the payload of one file.
type Footer struct {
	Sum    [sha256.Size]byte // of the compressed tar
	Length int64             // of the compressed tar, in bytes
	offset int64             // where it starts
}

// Hash is the checksum in hexadecimal.
func (f Footer) Hash() string { return hex.EncodeToString(f.Sum[:]) }

// Find reads the footer of file.
func Find(file *os.File) (Footer, error) {
	var f Footer
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return f, err
	}
	if size < int64(footerSize) {
		return f, ErrNone
	}
	raw := make([]byte, footerSize)
	if _, err := file.ReadAt(raw, size-int64(footerSize)); err != nil {
		return f, err
	}
	if string(raw[sha256.Size+8:]) != magic {
		return f, ErrNone
	}
	copy(f.Sum[:], raw)
	f.Length = int64(binary.BigEndian.Uint64(raw[sha256.Size:]))
	f.offset = size - int64(footerSize) - f.Length
	if f.Length <= 0 || f.offset < 0 {
		return f, ErrNone
	}
	return f, nil
}

// Append writes the folder as a payload behind what out already holds. Equal folders give equal bytes: names
// are sorted, owners and times are left out.
func Append(out io.Writer, folder string) (Footer, error) {
	var f Footer
	sum := sha256.New()
	count := &counter{}
	enc, err := zstd.NewWriter(io.MultiWriter(out, sum, count), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return f, err
	}
	archive := tar.NewWriter(enc)
	err = filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == folder {
			return err
		}
		return add(archive, folder, path, entry)
	})
	if err := errors.Join(err, archive.Close(), enc.Close()); err != nil {
		return f, err
	}
	copy(f.Sum[:], sum.Sum(nil))
	f.Length = count.n
	end := binary.BigEndian.AppendUint64(append([]byte{}, f.Sum[:]...), uint64(f.Length))
	_, err = out.Write(append(end, magic...))
	return f, err
}

type counter struct{ n int64 }

func (c *counter) Write(b []byte) (int, error) {
	c.n += int64(len(b))
	return len(b), nil
}

func add(archive *tar.Writer, folder, path string, entry fs.DirEntry) error {
	info, err := entry.Info()
	if err != nil {
		return err
	}
	name, err := filepath.Rel(folder, path)
	if err != nil {
		return err
	}
	head := &tar.Header{Name: name, Mode: int64(info.Mode().Perm())}
	switch {
	case info.IsDir():
		head.Typeflag, head.Name = tar.TypeDir, name+"/"
	case info.Mode().IsRegular():
		head.Typeflag, head.Size = tar.TypeReg, info.Size()
	default:
		return fmt.Errorf("%s: neither file nor folder", path)
	}
	if err := archive.WriteHeader(head); err != nil || head.Typeflag != tar.TypeReg {
		return err
	}
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	_, err = io.Copy(archive, in)
	return err
}

// Unpack writes the payload of file into target, which must not exist. It unpacks beside it and renames at the
// end, so that a folder of that name is always whole; what an interrupted run left behind is removed first.
func Unpack(file *os.File, f Footer, target string) error {
	half := target + "-tmp"
	if err := os.RemoveAll(half); err != nil {
		return err
	}
	if err := os.MkdirAll(half, 0o755); err != nil {
		return err
	}
	sum := sha256.New()
	packed := io.TeeReader(io.NewSectionReader(file, f.offset, f.Length), sum)
	if err := unpack(bufio.NewReaderSize(packed, 1<<20), half); err != nil {
		return fmt.Errorf("payload: %w", err)
	}
	if _, err := io.Copy(io.Discard, packed); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != f.Hash() {
		return fmt.Errorf("payload: checksum is %s, the footer says %s", got, f.Hash())
	}
	// Without this a power cut after the rename can leave a complete folder of empty files.
	dir, err := os.Open(half)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return err
	}
	return os.Rename(half, target)
}

func unpack(packed io.Reader, target string) error {
	dec, err := zstd.NewReader(packed)
	if err != nil {
		return err
	}
	defer dec.Close()
	archive := tar.NewReader(dec)
	for {
		head, err := archive.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if !filepath.IsLocal(head.Name) {
			return fmt.Errorf("%q leads out of the payload", head.Name)
		}
		path := filepath.Join(target, head.Name)
		switch head.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(path, 0o755)
		case tar.TypeReg:
			err = write(path, archive, fs.FileMode(head.Mode).Perm())
		default:
			err = fmt.Errorf("%s: unexpected type %q", head.Name, string(head.Typeflag))
		}
		if err != nil {
			return err
		}
	}
}

func write(path string, from io.Reader, mode fs.FileMode) error {
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, from)
	return errors.Join(err, out.Chmod(mode), out.Close())
}

package ipxe

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tinkerbell/ipxedust/binary"
)

const maxLoader = 16 << 20

// Loaders returns the boot loaders by name: ipxedust's builds, with a shorter
// prompt where that can be had, each replaced by the file of the same name in dir
// where there is one. An empty dir is none. The contents are shared: do not change them.
func Loaders(dir string) (map[string][]byte, error) {
	loaders := map[string][]byte{
		"undionly.kpxe": binary.Undionly, // its script is compressed
		"ipxe.efi":      prompt(binary.IpxeEFI),
		"snp.efi":       prompt(binary.SNP),
	}
	if dir == "" {
		return loaders, nil
	}
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("loader directory: %w", err)
	}
	for name := range loaders {
		data, err := readLoader(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("loader: %w", err)
		}
		loaders[name] = data
	}
	return loaders, nil
}

// The command of ipxedust's embedded script that has each start wait two seconds for
// Ctrl-B, and the same for a fifth of a second: who holds the key is still heard.
// Both are equally long, since the script lies in the middle of a program.
var (
	longPrompt  = []byte("prompt --key 0x02 --timeout 2000 Press")
	shortPrompt = []byte("prompt --key 0x02 --timeout 200  Press")
)

// prompt is a loader with the short prompt; one with another script stays as it is.
func prompt(loader []byte) []byte { return bytes.Replace(loader, longPrompt, shortPrompt, 1) }

func readLoader(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxLoader+1))
	if err != nil {
		return nil, err
	}
	if len(data) == 0 || len(data) > maxLoader {
		return nil, fmt.Errorf("%s: a loader has 1 to %d bytes", path, maxLoader)
	}
	return data, nil
}

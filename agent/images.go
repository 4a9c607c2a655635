package agent

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"bmc/agent/cache"
	"bmc/internal/manifest"
	"bmc/metal"
)

const (
	chunkURLLife = 12 * time.Hour
	chunkKeySize = 32
)

// chunkGrants says which chunks an operation may fetch: those of its image,
// while it writes it. For as long the cache keeps them.
type chunkGrants struct {
	signer *cache.Signer
	keep   func([]manifest.Digest) (release func())
	pacers map[string]*cache.Pacer // by rack; nil: no limit

	mu  sync.Mutex
	ops map[string]chunkGrant
}

type chunkGrant struct {
	chunks map[manifest.Digest]bool
	pacer  *cache.Pacer
}

// newChunkGrants keeps its key over restarts, so that a ramdisk in the middle
// of an image goes on.
func newChunkGrants(dataDir string, racks []RackConfig, keep func([]manifest.Digest) func()) (*chunkGrants, error) {
	path := filepath.Join(dataDir, "chunk.key")
	key, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if len(key) != chunkKeySize {
		key = make([]byte, chunkKeySize)
		_, _ = rand.Read(key) // never fails
		if err := writeFile(path, key); err != nil {
			return nil, err
		}
	}
	g := &chunkGrants{signer: cache.NewSigner(key), keep: keep, pacers: make(map[string]*cache.Pacer), ops: make(map[string]chunkGrant)}
	for _, r := range racks {
		g.pacers[r.Name] = cache.NewPacer(int64(r.MaxRate))
	}
	return g, nil
}

// grant opens an image's chunks to an operation until release is called.
func (g *chunkGrants) grant(rack RackConfig, httpPort int, operation string, data []byte) (url string, release func(), err error) {
	m, err := manifest.Parse(data)
	if err != nil {
		return "", nil, &metal.Error{Code: metal.CodeInvalid, Message: "the image's manifest is not valid", Err: err}
	}
	chunks := make(map[manifest.Digest]bool, len(m.Chunks))
	for _, c := range m.Chunks {
		chunks[c.StoredSHA256] = true
	}
	unkeep := g.keep(slices.Collect(maps.Keys(chunks)))
	g.mu.Lock()
	g.ops[operation] = chunkGrant{chunks, g.pacers[rack.Name]}
	g.mu.Unlock()
	host := rack.addr().String()
	if httpPort != 80 {
		host = net.JoinHostPort(host, strconv.Itoa(httpPort))
	}
	return g.signer.Template(host, operation, time.Now().Add(chunkURLLife)), func() {
		unkeep()
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.ops, operation)
	}, nil
}

func (g *chunkGrants) allowed(operation string, d manifest.Digest) cache.Grant {
	g.mu.Lock()
	defer g.mu.Unlock()
	o := g.ops[operation]
	return cache.Grant{OK: o.chunks[d], Pacer: o.pacer}
}

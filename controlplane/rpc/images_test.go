package rpc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/internal/manifest"
	"bmc/metal"

	"google.golang.org/grpc/codes"
)

// put uploads a chunk in pieces.
func put(ctx context.Context, c bmcv1.ImagesClient, digest []byte, size uint64, data []byte, piece int) error {
	s, err := c.PutChunk(ctx)
	if err != nil {
		return err
	}
	if err := s.Send(&bmcv1.PutChunkRequest{Digest: digest, Size: size}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for len(data) > 0 {
		n := min(piece, len(data))
		if err := s.Send(&bmcv1.PutChunkRequest{Data: data[:n]}); err != nil {
			break // CloseAndRecv has the reason
		}
		data = data[n:]
	}
	_, err = s.CloseAndRecv()
	return err
}

func TestPutChunk(t *testing.T) {
	b := newBed(t, 1)
	c, ctx := b.user(0).img, b.token("mona", metal.RoleMember, testProject)
	data := bytes.Repeat([]byte("0123456789"), 100_000)
	sum := sha256.Sum256(data)
	missing, err := c.MissingChunks(ctx, &bmcv1.MissingChunksRequest{Digests: [][]byte{sum[:]}})
	if err != nil || len(missing.GetMissing()) != 1 {
		t.Fatalf("%v %v", missing, err)
	}
	damaged := bytes.Clone(data)
	damaged[77777] ^= 1
	for name, tt := range map[string]struct {
		err    error
		reason metal.Code
	}{
		"damaged":   {put(ctx, c, sum[:], uint64(len(data)), damaged, 64<<10), metal.CodeCorruptChunk},
		"short":     {put(ctx, c, sum[:], uint64(len(data)), data[:len(data)-1], 64<<10), metal.CodeCorruptChunk},
		"long":      {put(ctx, c, sum[:], uint64(len(data))-1, data, 64<<10), metal.CodeCorruptChunk},
		"too large": {put(ctx, c, sum[:], 1<<40, data, 64<<10), metal.CodeInvalid},
		"empty":     {put(ctx, c, sum[:], 0, nil, 64<<10), metal.CodeInvalid},
		"digest":    {put(ctx, c, sum[:7], uint64(len(data)), data, 64<<10), metal.CodeInvalid},
	} {
		t.Run(name, func(t *testing.T) { refused(t, tt.err, codes.InvalidArgument, tt.reason, "") })
	}
	if len(b.store.chunks) != 0 {
		t.Fatal("a wrong chunk was stored")
	}
	if err := put(ctx, c, sum[:], uint64(len(data)), data, 60_000); err != nil {
		t.Fatal(err)
	}
	missing, err = c.MissingChunks(ctx, &bmcv1.MissingChunksRequest{Digests: [][]byte{sum[:]}})
	if err != nil || len(missing.GetMissing()) != 0 {
		t.Fatalf("%v %v", missing, err)
	}
	_, err = c.MissingChunks(ctx, &bmcv1.MissingChunksRequest{Digests: [][]byte{{1}}})
	refused(t, err, codes.InvalidArgument, metal.CodeInvalid, "")
}

func TestCreateImage(t *testing.T) {
	b, a := rentable(t, 2)
	c := b.user(1).img
	disk := make([]byte, 1<<20)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range disk[:300<<10] {
		disk[i] = byte(r.Uint32())
	}
	key, err := manifest.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	var frames []manifest.ChunkFrame
	m, err := manifest.Build(t.Context(), bytes.NewReader(disk), int64(len(disk)), manifest.Spec{Name: "mini", OS: "Mini 1", Arch: "x86_64", User: "root",
		SectorSize: 512, Firmware: []string{"bios"}, Configure: manifest.ConfigureNone, Ready: manifest.ReadyNone, ChunkSize: 64 << 10},
		func(f manifest.ChunkFrame) error { frames = append(frames, f); return nil })
	if err != nil {
		t.Fatal(err)
	}
	req := &bmcv1.CreateImageRequest{Manifest: m.Canonical(), Signature: m.Sign(key)}
	_, err = c.CreateImage(b.admin(), req)
	refused(t, err, codes.InvalidArgument, metal.CodeSignature, "")
	if _, err := c.AddSigningKey(b.admin(), &bmcv1.AddSigningKeyRequest{PublicKey: "RWnonsense"}); err == nil {
		t.Fatal("took nonsense for a key")
	}
	if _, err := c.AddSigningKey(b.admin(), &bmcv1.AddSigningKeyRequest{PublicKey: manifest.PublicKey(key)}); err != nil {
		t.Fatal(err)
	}
	_, err = c.CreateImage(b.admin(), req)
	refused(t, err, codes.FailedPrecondition, metal.CodeImageUnavailable, "bmc image push")
	for _, f := range frames {
		if err := put(b.admin(), c, f.StoredSHA256[:], uint64(len(f.Data)), f.Data, 256<<10); err != nil {
			t.Fatal(err)
		}
	}
	img, err := c.CreateImage(b.admin(), req)
	if err != nil || img.GetName() != "mini" || img.GetId() != m.ID() || int(img.GetChunks()) != len(frames) {
		t.Fatalf("%v %v", img, err)
	}
	full, err := c.GetImage(b.admin(), &bmcv1.GetImageRequest{Ref: "mini"})
	if err != nil || !bytes.Equal(full.GetManifest(), m.Canonical()) {
		t.Fatal(err)
	}
	list, err := c.ListImages(b.admin(), &bmcv1.ListImagesRequest{})
	if err != nil || len(list.GetImages()) != 2 || len(list.GetImages()[0].GetManifest()) != 0 {
		t.Fatalf("%v %v", list, err)
	}
	// In use while a deployment of it is open, free after.
	if _, err := b.user(0).CreateServer(b.admin(), &bmcv1.CreateServerRequest{Name: "web-1", Image: "mini"}); err != nil {
		t.Fatal(err)
	}
	_, err = c.DeleteImage(b.admin(), &bmcv1.DeleteImageRequest{Ref: "mini"})
	refused(t, err, codes.FailedPrecondition, metal.CodeInUse, "")
	a.run("web-1")
	del := &bmcv1.DeleteImageRequest{RequestId: uuidV7(b.now(), [10]byte{4}), Ref: "mini"}
	for range 2 {
		if _, err := c.DeleteImage(b.admin(), del); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzPageToken: whatever a client sends for a page token is refused or read.
func FuzzPageToken(f *testing.F) {
	f.Add(pageToken{List: "servers", After: "r1-u01"}.encode())
	f.Add("AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		tok, ok, err := parsePageToken("servers", s)
		if err == nil && ok && tok.List != "servers" {
			t.Fatalf("%q: %+v", s, tok)
		}
	})
}

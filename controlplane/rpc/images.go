package rpc

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/internal/manifest"
	"bmc/metal"

	"google.golang.org/grpc"
)

// Bounds of what is stored.
const (
	maxDigests     = 10_000
	maxStoredChunk = 17 << 20 // a frame of the largest chunk, and what zstd may add
	hasBatch       = 1000
)

type images struct {
	bmcv1.UnimplementedImagesServer
	*API
}

func (s *images) store() (ImageStore, error) {
	if s.Images == nil {
		return nil, metal.Errorf(metal.CodeImageUnavailable, "node %s has no image store configured", s.NodeID)
	}
	return s.Images, nil
}

// unavailable keeps the store's own words for the log.
func unavailable(err error) error {
	var e *metal.Error
	if errors.As(err, &e) || isContextError(err) {
		return err
	}
	return &metal.Error{Code: metal.CodeImageUnavailable, Message: "the image store does not answer", Hint: "bmc doctor", Err: err}
}

func (s *images) MissingChunks(ctx context.Context, req *bmcv1.MissingChunksRequest) (*bmcv1.MissingChunksResponse, error) {
	store, err := s.store()
	if err != nil {
		return nil, err
	}
	if len(req.GetDigests()) > maxDigests {
		return nil, metal.Invalid("digests", "are %d, more than %d", len(req.GetDigests()), maxDigests)
	}
	names := make([]string, 0, len(req.GetDigests()))
	for _, d := range req.GetDigests() {
		if len(d) != sha256.Size {
			return nil, metal.Invalid("digests", "must have %d bytes each", sha256.Size)
		}
		names = append(names, hex.EncodeToString(d))
	}
	missing, err := s.missing(ctx, store, names)
	if err != nil {
		return nil, err
	}
	resp := &bmcv1.MissingChunksResponse{}
	for _, name := range missing {
		d, err := hex.DecodeString(name)
		if err != nil {
			return nil, fmt.Errorf("image store answered digest %q: %w", name, err)
		}
		resp.Missing = append(resp.Missing, d)
	}
	return resp, nil
}

func (s *images) missing(ctx context.Context, store ImageStore, names []string) ([]string, error) {
	var out []string
	for len(names) > 0 {
		n := min(len(names), hasBatch)
		m, err := store.Has(ctx, names[:n])
		if err != nil {
			return nil, unavailable(err)
		}
		out = append(out, m...)
		names = names[n:]
	}
	return out, nil
}

func (s *images) PutChunk(stream grpc.ClientStreamingServer[bmcv1.PutChunkRequest, bmcv1.PutChunkResponse]) error {
	store, err := s.store()
	if err != nil {
		return err
	}
	head, err := stream.Recv()
	if err != nil {
		return err
	}
	if len(head.GetDigest()) != sha256.Size {
		return metal.Invalid("digest", "must have %d bytes", sha256.Size)
	}
	if head.GetSize() == 0 || head.GetSize() > maxStoredChunk {
		return metal.Invalid("size", "is %d, must be 1 to %d", head.GetSize(), maxStoredChunk)
	}
	name := hex.EncodeToString(head.GetDigest())
	r := &chunkReader{next: stream.Recv, buf: head.GetData(), left: head.GetSize(), want: name, sum: sha256.New()}
	if err := store.Put(stream.Context(), name, int64(head.GetSize()), r); err != nil {
		if r.err != nil && !errors.Is(r.err, io.EOF) {
			return r.err // the sender's fault, however the store puts it
		}
		return unavailable(err)
	}
	if r.left > 0 {
		return metal.Errorf(metal.CodeInternal, "image store took %d bytes too few of chunk %s", r.left, name)
	}
	return stream.SendAndClose(&bmcv1.PutChunkResponse{})
}

// chunkReader reads a chunk out of a stream. It gives out the last byte only
// when the digest is right, so that no store ever completes a wrong object.
type chunkReader struct {
	next func() (*bmcv1.PutChunkRequest, error)
	buf  []byte // received, hashed with the first Read that sees it
	left uint64 // of the announced size, not yet given out
	want string
	sum  hash.Hash
	got  uint64 // received and hashed
	size uint64 // announced; set by the first Read
	err  error
}

func (r *chunkReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if r.size == 0 {
		r.size = r.left
		if r.err = r.accept(r.buf); r.err != nil {
			return 0, r.err
		}
	}
	for len(r.buf) == 0 {
		if r.left == 0 {
			r.err = io.EOF
			return 0, r.err
		}
		m, err := r.next()
		if errors.Is(err, io.EOF) {
			err = metal.Errorf(metal.CodeCorruptChunk, "chunk %s ended after %d of %d bytes", r.want, r.got, r.size)
		}
		if err == nil {
			err = r.accept(m.GetData())
		}
		if err != nil {
			r.err = err
			return 0, err
		}
		r.buf = m.GetData()
	}
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	r.left -= uint64(n)
	return n, nil
}

// accept hashes received bytes before any of them is given out.
func (r *chunkReader) accept(data []byte) error {
	r.got += uint64(len(data))
	if r.got > r.size {
		return metal.Errorf(metal.CodeCorruptChunk, "chunk %s has more than the announced %d bytes", r.want, r.size)
	}
	r.sum.Write(data)
	if r.got == r.size && hex.EncodeToString(r.sum.Sum(nil)) != r.want {
		return metal.Errorf(metal.CodeCorruptChunk, "chunk %s does not have that digest: it was damaged on its way", r.want).WithHint("bmc image push FILE")
	}
	return nil
}

func (s *images) CreateImage(ctx context.Context, req *bmcv1.CreateImageRequest) (*bmcv1.Image, error) {
	m, err := manifest.Parse(req.GetManifest())
	if err != nil {
		return nil, err
	}
	v, err := s.linearizable(ctx)
	if err != nil {
		return nil, err
	}
	project, err := s.projectOf(ctx, v, req.GetProject())
	if err != nil {
		return nil, err
	}
	keyID, err := manifest.Verify(req.GetManifest(), req.GetSignature(), project.SigningKeys)
	if err != nil {
		return nil, err
	}
	if err := s.checkStored(ctx, m); err != nil {
		return nil, err
	}
	res, err := s.propose(ctx, req, &logpb.Command{Command: &logpb.Command_CreateImage{CreateImage: &logpb.CreateImage{Image: &logpb.Image{
		Id: m.ID(), Name: m.Name, Project: project.ID, Os: m.OS, Arch: m.Arch, SizeBytes: uint64(m.SizeBytes),
		StoredBytes: uint64(m.StoredBytes()), Chunks: int64(len(m.Chunks)), Firmware: m.Firmware, User: m.User,
		Manifest: req.GetManifest(), Signature: req.GetSignature(), SigningKeyId: keyID}}}})
	if err != nil {
		return nil, err
	}
	v = s.Proposer.StaleView()
	if img, ok := v.Image(project.ID, res.ID); ok {
		return toImage(v, img, false), nil
	}
	return nil, metal.Errorf(metal.CodeNotFound, "the request was done before; the image that it registered is gone").WithHint("bmc image list")
}

func (s *images) checkStored(ctx context.Context, m *manifest.Manifest) error {
	store, err := s.store()
	if err != nil {
		return err
	}
	names := make([]string, 0, len(m.Chunks))
	for _, c := range m.Chunks {
		names = append(names, c.StoredSHA256.String())
	}
	missing, err := s.missing(ctx, store, names)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return metal.Errorf(metal.CodeImageUnavailable, "%d of the image's %d chunks are not in the store", len(missing), len(names)).
			WithHint("bmc image push FILE")
	}
	return nil
}

// find looks an image up in the caller's project, the default one for operators
// without one.
func (s *images) find(ctx context.Context, v *state.View, ref string) (*bmcv1.Image, *metal.Image, error) {
	if ref == "" {
		return nil, nil, metal.Invalid("ref", "is empty: give an image's name or ID").WithHint("bmc image list")
	}
	project, err := s.projectOf(ctx, v, "")
	if err != nil {
		return nil, nil, err
	}
	img, err := v.ResolveImage(project.ID, ref)
	if err != nil {
		return nil, nil, err
	}
	return toImage(v, img, true), img, nil
}

func (s *images) GetImage(ctx context.Context, req *bmcv1.GetImageRequest) (*bmcv1.Image, error) {
	v, err := s.read(ctx, req)
	if err != nil {
		return nil, err
	}
	out, _, err := s.find(ctx, v, req.GetRef())
	return out, err
}

func (s *images) ListImages(ctx context.Context, req *bmcv1.ListImagesRequest) (*bmcv1.ListImagesResponse, error) {
	v, err := s.read(ctx, req)
	if err != nil {
		return nil, err
	}
	resp := &bmcv1.ListImagesResponse{}
	for img := range v.Images(caller(ctx).scope()) {
		resp.Images = append(resp.Images, toImage(v, img, false))
	}
	return resp, nil
}

func (s *images) DeleteImage(ctx context.Context, req *bmcv1.DeleteImageRequest) (*bmcv1.DeleteImageResponse, error) {
	v, err := s.linearizable(ctx)
	if err != nil {
		return nil, err
	}
	if done, err := s.replayed(ctx, v, req); done != nil || err != nil {
		return &bmcv1.DeleteImageResponse{}, err
	}
	_, img, err := s.find(ctx, v, req.GetRef())
	if err != nil {
		return nil, err
	}
	if _, err := s.propose(ctx, req, &logpb.Command{Command: &logpb.Command_DeleteImage{DeleteImage: &logpb.DeleteImage{
		Project: img.Project, ImageId: img.ID}}}); err != nil {
		return nil, err
	}
	return &bmcv1.DeleteImageResponse{}, nil
}

func (s *images) AddSigningKey(ctx context.Context, req *bmcv1.AddSigningKeyRequest) (*bmcv1.AddSigningKeyResponse, error) {
	if _, err := manifest.KeyID(req.GetPublicKey()); err != nil {
		return nil, metal.Invalid("public_key", "is not a minisign public key")
	}
	v, err := s.linearizable(ctx)
	if err != nil {
		return nil, err
	}
	project, err := s.projectOf(ctx, v, req.GetProject())
	if err != nil {
		return nil, err
	}
	if _, err := s.propose(ctx, req, &logpb.Command{Command: &logpb.Command_AddSigningKey{AddSigningKey: &logpb.AddSigningKey{
		Project: project.ID, PublicKey: req.GetPublicKey()}}}); err != nil {
		return nil, err
	}
	return &bmcv1.AddSigningKeyResponse{}, nil
}

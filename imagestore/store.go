// Package imagestore keeps images' chunks in an S3 bucket, each under the
// digest of its stored bytes, so that images share chunks, an interrupted push
// goes on where it stopped, and no reader has to trust the store.
package imagestore

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"bmc/internal/manifest"
	"bmc/metal"
)

const (
	parallel       = 16               // requests of one Has
	tries          = 4                // of a request; the pauses between them add up to 3 s at most
	connectTimeout = 5 * time.Second  // TCP, then TLS
	requestTimeout = 2 * time.Minute  // of one request, tries included, and what it sends
	bodyTimeout    = 30 * time.Second // without a byte of a chunk that somebody reads
	checkTimeout   = 10 * time.Second // of Check
)

// MaxChunkBytes is the largest frame that Put takes.
var MaxChunkBytes = manifest.MaxStoredSize(manifest.MaxChunkSize)

// Store is an image store. It is safe for concurrent use. Except for a
// cancelled or expired context, whose error is returned as it is, errors are
// *metal.Error with CodeImageUnavailable.
type Store struct {
	config    Config
	core      minio.Core
	transport *http.Transport
	body      time.Duration // bodyTimeout
}

// Open prepares access to a store. It does not connect: call Check for that.
func Open(c Config) (*Store, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Region == "" {
		c.Region = "us-east-1" // naming one saves a request that asks for it
	}
	endpoint, err := c.endpoint()
	if err != nil {
		return nil, err
	}
	secret, err := c.secret()
	if err != nil {
		return nil, err
	}
	transport, err := c.transport()
	if err != nil {
		return nil, err
	}
	client, err := minio.New(endpoint.Host, &minio.Options{
		Creds:        credentials.NewStaticV4(c.AccessKey, secret, ""),
		Secure:       endpoint.Scheme == "https",
		Transport:    transport,
		Region:       c.Region,
		BucketLookup: minio.BucketLookupPath,
		MaxRetries:   tries,
	})
	if err != nil {
		return nil, metal.Invalid("image_store", "%v", err)
	}
	c.SecretKey = ""
	return &Store{config: c, core: minio.Core{Client: client}, transport: transport, body: bodyTimeout}, nil
}

// Close drops idle connections.
func (s *Store) Close() { s.transport.CloseIdleConnections() }

// Check asks, for ten seconds at most, whether the store answers, takes the
// credentials and has the bucket.
func (s *Store) Check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	ok, err := s.core.BucketExists(ctx, s.config.Bucket)
	if err != nil {
		return s.fail(ctx, err)
	}
	if !ok {
		return s.fail(ctx, minio.ErrorResponse{Code: minio.NoSuchBucket})
	}
	return nil
}

// CreateBucket makes the bucket unless it is there.
func (s *Store) CreateBucket(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err := s.core.MakeBucket(ctx, s.config.Bucket, minio.MakeBucketOptions{Region: s.config.Region})
	if code := minio.ToErrorResponse(err).Code; err == nil || code == minio.BucketAlreadyOwnedByYou || code == minio.BucketAlreadyExists {
		return nil
	}
	return s.fail(ctx, err)
}

// Has returns those of digests that the store lacks, in their order.
func (s *Store) Has(ctx context.Context, digests []manifest.Digest) (missing []manifest.Digest, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	lacks := make([]bool, len(digests))
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(parallel, len(digests)) {
		wg.Go(func() {
			for i := range next {
				ok, err := s.has(ctx, digests[i])
				if err != nil {
					cancel(err)
					return
				}
				lacks[i] = !ok
			}
		})
	}
feed:
	for i := range digests {
		select {
		case next <- i:
		case <-ctx.Done():
			break feed
		}
	}
	close(next)
	wg.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	for i, d := range digests {
		if lacks[i] {
			missing = append(missing, d)
		}
	}
	return missing, nil
}

func (s *Store) has(ctx context.Context, d manifest.Digest) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := s.core.StatObject(ctx, s.config.Bucket, key(d), minio.StatObjectOptions{})
	switch {
	case err == nil:
		return true, nil
	case isMissing(err):
		return false, nil
	}
	return false, s.fail(ctx, err)
}

// Put stores the size bytes of r under their digest, unless they are there. A
// wrong size or digest is refused, with CodeCorruptChunk, before anything is
// sent; the store then checks the same digest over what it received.
func (s *Store) Put(ctx context.Context, digest manifest.Digest, size int64, r io.Reader) error {
	if size <= 0 || size > MaxChunkBytes {
		return metal.Invalid("size", "%d is not between 1 and %d", size, MaxChunkBytes)
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(r, data); err != nil {
		return metal.Errorf(metal.CodeCorruptChunk, "chunk %s ends before its %d bytes: %v", digest, size, err)
	}
	if n, _ := io.ReadFull(r, make([]byte, 1)); n > 0 {
		return metal.Errorf(metal.CodeCorruptChunk, "chunk %s is longer than its %d bytes", digest, size)
	}
	if got := manifest.Sum(data); got != digest {
		return metal.Errorf(metal.CodeCorruptChunk, "chunk %s has the SHA-256 %s", digest, got)
	}
	if ok, err := s.has(ctx, digest); ok || err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := s.core.Client.PutObject(ctx, s.config.Bucket, key(digest), bytes.NewReader(data), size, minio.PutObjectOptions{
		ContentType:      "application/zstd",
		DisableMultipart: true,
		UserMetadata:     map[string]string{"X-Amz-Checksum-Sha256": base64.StdEncoding.EncodeToString(digest[:])},
	})
	if err != nil {
		return s.fail(ctx, err)
	}
	return nil
}

// Get returns a chunk's stored bytes and their number. The caller closes the
// reader, and checks the digest. It may read as slowly as it likes; a store that lets it
// wait for half a minute has failed.
func (s *Store) Get(ctx context.Context, digest manifest.Digest) (io.ReadCloser, int64, error) {
	parent := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	late := time.AfterFunc(requestTimeout, func() { cancel(context.DeadlineExceeded) })
	body, info, _, err := s.core.GetObject(ctx, s.config.Bucket, key(digest), minio.GetObjectOptions{})
	if !late.Stop() && err == nil { // it came too late
		err = errors.Join(context.DeadlineExceeded, body.Close())
	}
	if err != nil {
		defer cancel(nil)
		if isMissing(err) {
			return nil, 0, metal.Errorf(metal.CodeImageUnavailable, "the image store %s lacks chunk %s", s.config, digest).
				WithHint("bmc image push FILE")
		}
		return nil, 0, s.fail(parent, err)
	}
	return &object{ReadCloser: body, store: s, parent: parent, cancel: cancel}, info.Size, nil
}

// Delete removes a chunk; one that is not there is no error.
func (s *Store) Delete(ctx context.Context, digest manifest.Digest) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err := s.core.RemoveObject(ctx, s.config.Bucket, key(digest), minio.RemoveObjectOptions{})
	if err != nil && !isMissing(err) {
		return s.fail(ctx, err)
	}
	return nil
}

// object is a body whose errors have a code.
type object struct {
	io.ReadCloser
	store  *Store
	parent context.Context //nolint:containedctx // the caller's; the body's own life is cancel's
	cancel context.CancelCauseFunc
}

func (o *object) Read(p []byte) (int, error) {
	late := time.AfterFunc(o.store.body, func() { o.cancel(context.DeadlineExceeded) })
	n, err := o.ReadCloser.Read(p)
	late.Stop()
	if err != nil && !errors.Is(err, io.EOF) {
		err = o.store.fail(o.parent, err)
	}
	return n, err
}

func (o *object) Close() error {
	defer o.cancel(nil)
	return o.ReadCloser.Close()
}

// key spreads chunks over 256 prefixes, which file-backed stores and people
// who look into them are grateful for.
func key(d manifest.Digest) string {
	hex := d.String()
	return "chunks/" + hex[:2] + "/" + hex
}

// isMissing tells an absent chunk from an absent bucket.
func isMissing(err error) bool {
	return minio.ToErrorResponse(err).Code == minio.NoSuchKey
}

// fail says what is wrong with the store. A context that the caller ended is
// the caller's business and returned as it is.
func (s *Store) fail(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	e := &metal.Error{Code: metal.CodeImageUnavailable, Hint: "bmc doctor", Err: err}
	switch minio.ToErrorResponse(err).Code {
	case minio.AccessDenied, minio.InvalidAccessKeyID, minio.SignatureDoesNotMatch:
		e.Message = "the image store " + s.config.String() + " refuses access key " + s.config.AccessKey
	case minio.NoSuchBucket:
		e.Message = "the image store " + s.config.Endpoint + " has no bucket " + s.config.Bucket
	case "":
		e.Message = "the image store " + s.config.Endpoint + " does not answer"
	default:
		e.Message = "the image store " + s.config.Endpoint + " failed (" + minio.ToErrorResponse(err).Code + ")"
	}
	return e
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/client"
	"bmc/cmd/bmc/output"
	"bmc/internal/config"
	"bmc/internal/manifest"
	"bmc/metal"
)

var imageColumns = []output.Column[*bmcv1.Image]{
	{Name: "NAME", Value: (*bmcv1.Image).GetName},
	{Name: "OS", Value: (*bmcv1.Image).GetOs},
	{Name: "FIRMWARE", Value: func(i *bmcv1.Image) string { return strings.Join(i.GetFirmware(), ",") }},
	{Name: "DISK", Value: func(i *bmcv1.Image) string { return bytesText(i.GetSizeBytes()) }},
	{Name: "STORED", Value: func(i *bmcv1.Image) string { return bytesText(i.GetStoredBytes()) }},
	{Name: "USER", Value: (*bmcv1.Image).GetUser},
	{Name: "CREATED", Value: func(i *bmcv1.Image) string { return when(i.GetCreated()) }},
	{Name: "ID", Wide: true, Value: (*bmcv1.Image).GetId},
	{Name: "CHUNKS", Wide: true, Value: func(i *bmcv1.Image) string { return fmt.Sprint(i.GetChunks()) }},
	{Name: "KEY", Wide: true, Value: (*bmcv1.Image).GetSigningKeyId},
}

func (a *app) imageCommand() *cobra.Command {
	p := push{}
	pushCmd := &cobra.Command{Use: "push FILE", Short: "Sign and store a raw disk image", Args: exactly("FILE"),
		Long: `Cuts the disk image FILE into chunks, stores those that are not stored yet, signs
the manifest and registers the image. What the image is (name, user, firmware, how
it is configured) is read from FILE with the ending .yaml, or from --spec. A push
that was interrupted goes on where it stopped. The signing key is made at the
first push and put on the project's list.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			p.file = args[0]
			return a.push(cmd.Context(), p)
		}}
	f := pushCmd.Flags()
	f.StringVar(&p.spec, "spec", "", "YAML file that describes the image")
	f.StringVar(&p.name, "name", "", "name, instead of the description's")
	f.StringVar(&p.key, "key", "", "minisign private key (default: signing.key beside the contexts)")
	f.IntVar(&p.jobs, "jobs", 4, "chunks under way at once")
	f.StringVar(&p.project, "project", "", "project; your own when left out")

	list := &cobra.Command{Use: "list", Short: "List the images", Args: exactly(), RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := a.api()
		if err != nil {
			return err
		}
		res, err := c.Images.ListImages(cmd.Context(), &bmcv1.ListImagesRequest{})
		if err != nil {
			return err
		}
		return show(a, res.GetImages(), imageColumns, (*bmcv1.Image).GetName, "no images; to add one: bmc image push FILE")
	}}
	get := &cobra.Command{Use: "get IMAGE", Short: "Show an image", Args: exactly("IMAGE"), RunE: func(cmd *cobra.Command, args []string) error {
		c, err := a.api()
		if err != nil {
			return err
		}
		i, err := c.Images.GetImage(cmd.Context(), &bmcv1.GetImageRequest{Ref: args[0]})
		if err != nil {
			return err
		}
		return output.One(a.out, a.format, i, imageColumns, (*bmcv1.Image).GetName)
	}}
	rm := &cobra.Command{Use: "rm IMAGE", Short: "Take an image off the list", Args: exactly("IMAGE"), RunE: func(cmd *cobra.Command, args []string) error {
		c, err := a.api()
		if err != nil {
			return err
		}
		if _, err := c.Images.DeleteImage(cmd.Context(), &bmcv1.DeleteImageRequest{Ref: args[0]}); err != nil {
			return err
		}
		a.note("image %s is off the list; servers that run it go on", args[0])
		return nil
	}}
	return group("image", "OS images", pushCmd, list, get, rm, a.trustCommand())
}

// trustCommand lets somebody push who may not decide what boots.
func (a *app) trustCommand() *cobra.Command {
	var project string
	cmd := &cobra.Command{Use: "trust FILE.pub", Short: "Let images be signed by a key (operators)", Args: exactly("FILE.pub"),
		Long: "Puts the public half of a signing key on the project's list: images that it has signed may be\n" +
			"registered, and are written to servers. A member's first push makes one, beside the contexts.",
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := os.ReadFile(args[0])
			if err != nil {
				return metal.Errorf(metal.CodeInvalid, "cannot read the public key: %v", err).WithHint("bmc image trust --help")
			}
			id, err := manifest.KeyID(string(b)) // before it leaves this machine: it may be the private half
			if err != nil {
				return metal.Errorf(metal.CodeInvalid, "%s is not the public half of a signing key", args[0]).WithHint("bmc image trust --help")
			}
			c, err := a.api()
			if err != nil {
				return err
			}
			if _, err := c.Images.AddSigningKey(cmd.Context(), &bmcv1.AddSigningKeyRequest{Project: project, PublicKey: string(b)}); err != nil {
				return err
			}
			a.note("images signed by key %s are trusted", id)
			return nil
		}}
	cmd.Flags().StringVar(&project, "project", "", "project; your own when left out")
	return cmd
}

type push struct {
	file, spec, name, key, project string
	jobs                           int
}

func (a *app) push(ctx context.Context, p push) error {
	f, err := os.Open(p.file)
	if err != nil {
		return metal.Errorf(metal.CodeInvalid, "cannot read the image: %v", err).WithHint("bmc image push --help")
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return metal.Errorf(metal.CodeInvalid, "%s is not a file", p.file).WithHint("bmc image push --help")
	}
	if err := requireRaw(f, p.file); err != nil {
		return err
	}
	spec, err := imageSpec(p)
	if err != nil {
		return err
	}
	key, err := a.signingKey(p.key)
	if err != nil {
		return metal.Errorf(metal.CodeInvalid, "cannot use the signing key: %v", err).WithHint("bmc image push --help")
	}
	c, err := a.api()
	if err != nil {
		return err
	}
	_, err = c.Images.AddSigningKey(ctx, &bmcv1.AddSigningKeyRequest{Project: p.project, PublicKey: manifest.PublicKey(key)})
	if metal.CodeOf(err) == metal.CodeDenied {
		a.note("you may not put a signing key on the project's list: yours must be there already (an operator: bmc image trust FILE.pub)")
	} else if err != nil {
		return err
	}
	u := &upload{app: a, c: c, size: info.Size(), started: time.Now(), jobs: max(1, min(p.jobs, 32))}
	m, err := u.run(ctx, f, spec)
	if err != nil {
		return err
	}
	img, err := c.Images.CreateImage(ctx, &bmcv1.CreateImageRequest{Project: p.project, Manifest: m.Canonical(), Signature: m.Sign(key)})
	if err != nil {
		return err
	}
	return output.One(a.out, a.format, img, imageColumns, (*bmcv1.Image).GetName)
}

func imageSpec(p push) (manifest.Spec, error) {
	var spec manifest.Spec
	path := p.spec
	if path == "" {
		path = strings.TrimSuffix(strings.TrimSuffix(p.file, filepath.Ext(p.file)), ".raw") + ".yaml"
	}
	if err := config.Load(path, &spec); err != nil {
		var e *metal.Error
		if errors.As(err, &e) && p.spec == "" {
			return spec, e.WithHint("bmc image push %s --spec FILE.yaml", p.file)
		}
		return spec, err
	}
	if p.name != "" {
		spec.Name = p.name
	}
	spec = spec.WithDefaults()
	return spec, spec.Validate()
}

// signingKey loads the key, or makes one where the default is missing.
func (a *app) signingKey(path string) (manifest.PrivateKey, error) {
	if path != "" {
		return manifest.LoadKey(path)
	}
	contexts, err := a.contextsPath()
	if err != nil {
		return manifest.PrivateKey{}, err
	}
	path = filepath.Join(filepath.Dir(contexts), "signing.key")
	key, err := manifest.LoadKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err = manifest.GenerateKey(); err != nil {
		return key, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return key, err
	}
	a.note("made a signing key: %s (keep a copy; its public half is beside it)", path)
	return key, manifest.WriteKey(path, key)
}

// upload stores the chunks of one image that the cluster lacks.
type upload struct {
	app     *app
	c       *client.Client
	size    int64
	jobs    int
	started time.Time
	shown   time.Time

	sent, skipped uint64 // bytes
}

// batch is how many chunks are asked about, and held in memory, at once.
const batch = 16

func (u *upload) run(ctx context.Context, f *os.File, spec manifest.Spec) (*manifest.Manifest, error) {
	var frames []manifest.ChunkFrame
	m, err := manifest.Build(ctx, f, u.size, spec, func(frame manifest.ChunkFrame) error {
		frames = append(frames, frame)
		if len(frames) < max(batch, runtime.NumCPU()) {
			return nil
		}
		err := u.flush(ctx, frames)
		frames = frames[:0]
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := u.flush(ctx, frames); err != nil {
		return nil, err
	}
	u.show(u.size, true)
	return m, nil
}

func (u *upload) flush(ctx context.Context, frames []manifest.ChunkFrame) error {
	if len(frames) == 0 {
		return nil
	}
	req := &bmcv1.MissingChunksRequest{}
	byDigest := map[manifest.Digest]manifest.ChunkFrame{}
	for _, f := range frames {
		if _, twice := byDigest[f.StoredSHA256]; !twice {
			byDigest[f.StoredSHA256] = f
			req.Digests = append(req.Digests, f.StoredSHA256[:])
		}
		u.skipped += uint64(len(f.Data))
	}
	res, err := u.c.Images.MissingChunks(ctx, req)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(u.jobs)
	for _, d := range res.GetMissing() {
		digest, err := manifest.DigestFromBytes(d)
		if err != nil {
			return err
		}
		frame, ok := byDigest[digest]
		if !ok {
			return metal.Errorf(metal.CodeInternal, "the node asks for a chunk that is not in this image")
		}
		u.skipped -= uint64(len(frame.Data))
		u.sent += uint64(len(frame.Data))
		g.Go(func() error { return u.put(gctx, frame) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	last := frames[len(frames)-1]
	u.show(last.Offset+last.Size, false)
	return nil
}

const putPiece = 256 << 10 // bytes in a message

// put stores one chunk, trying again where a connection breaks.
func (u *upload) put(ctx context.Context, frame manifest.ChunkFrame) error {
	var err error
	for try := 0; try < 4; try++ {
		if err = u.putOnce(ctx, frame); err == nil || metal.CodeOf(err) != metal.CodeNoLeader {
			return err
		}
	}
	return err
}

func (u *upload) putOnce(ctx context.Context, frame manifest.ChunkFrame) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	s, err := u.c.Images.PutChunk(ctx)
	if err != nil {
		return err
	}
	data := frame.Data
	msg := &bmcv1.PutChunkRequest{Digest: frame.StoredSHA256[:], Size: uint64(len(data))}
	for {
		n := min(len(data), putPiece)
		msg.Data, data = data[:n], data[n:]
		if s.Send(msg) != nil {
			break // the reason comes with the answer
		}
		if len(data) == 0 {
			break
		}
		msg = &bmcv1.PutChunkRequest{}
	}
	_, err = s.CloseAndRecv()
	return err
}

// show draws how far the push is, at most twice a second.
func (u *upload) show(at int64, end bool) {
	a := u.app
	if a.quiet || (!end && time.Since(u.shown) < 500*time.Millisecond) {
		return
	}
	u.shown = time.Now()
	took := time.Since(u.started).Seconds()
	if end {
		if a.terminal(a.err) {
			fmt.Fprint(a.err, "\r\x1b[K")
		}
		a.note("read %s in %.1f s (%s/s); sent %s, %s were stored already", bytesText(uint64(u.size)), took, //nolint:gosec // a size
			bytesText(uint64(float64(u.size)/max(took, 0.001))), bytesText(u.sent), bytesText(u.skipped))
		return
	}
	if a.terminal(a.err) {
		fmt.Fprintf(a.err, "\r\x1b[K%d %% of %s, sent %s", at*100/max(u.size, 1), bytesText(uint64(u.size)), bytesText(u.sent)) //nolint:gosec // a size
	}
}

package controlplane

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"testing"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/bench/measure"
	"bmc/client"
	"bmc/controlplane/trust"
)

// typed is a client of all nodes.
func (s *site) typed() *client.Client {
	s.t.Helper()
	der, err := trust.ReadCertificate(s.nodes[0].conf.file(fileCA))
	if err != nil {
		s.t.Fatal(err)
	}
	cfg := client.Config{Token: s.token, CACert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), Patience: 30 * time.Second}
	for _, n := range s.nodes {
		cfg.Addresses = append(cfg.Addresses, n.conf.Advertise)
	}
	c, err := client.New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			s.t.Error(err)
		}
	})
	return c
}

// A watch sees every change once while leaders go away under it, the writer
// gets an answer to every write, and reads hold what was written.
func TestClientAcrossLeaders(t *testing.T) {
	s := three(t)
	writer, reader := s.typed(), s.typed()
	const keys = 60
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	seen, begun, watched := map[string]int{}, make(chan struct{}), make(chan error, 1)
	all := errors.New("all were seen")
	go func() {
		last := uint64(0)
		watched <- reader.Watch(ctx, &bmcv1.WatchRequest{Kinds: []string{"event"}, NoSnapshot: true}, func(m *bmcv1.WatchResponse) error {
			if m.GetBookmark() && last == 0 {
				close(begun)
			}
			if m.GetResync() {
				return errors.New("it was made to start over")
			}
			last = max(last, m.GetRevision())
			if m.GetEvent().GetKind() == "key.added" {
				seen[m.GetEvent().GetTarget()]++
			}
			if m.GetBookmark() && len(seen) == keys {
				return all
			}
			return nil
		})
	}()
	<-begun
	for i := range keys {
		if i%20 == 10 { // thrice: the leader goes away, and comes back
			old := s.leader()
			if err := old.Close(); err != nil {
				t.Fatal(err)
			}
			s.start(old.conf)
		}
		if _, err := writer.Keys.AddKey(ctx, &bmcv1.AddKeyRequest{Name: fmt.Sprintf("k-%d", i), PublicKey: measure.PublicKey()}); err != nil {
			t.Fatalf("key %d: %v", i, err)
		}
		if i%20 == 11 {
			got, err := reader.Keys.ListKeys(ctx, &bmcv1.ListKeysRequest{})
			if err != nil || len(got.GetKeys()) != i+1 {
				t.Fatalf("%d of %d keys are read: %v", len(got.GetKeys()), i+1, err)
			}
		}
	}
	if err := <-watched; !errors.Is(err, all) {
		t.Fatalf("the watch ended with %v after %d of %d", err, len(seen), keys)
	}
	for k, n := range seen {
		if n != 1 {
			t.Errorf("%s was shown %d times", k, n)
		}
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/bench/cluster"
	"bmc/bench/measure"
	"bmc/client"
)

// writers add and remove keys, each one write at a time.
type writers struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	took   []time.Duration
	errs   []error
}

// startWriters starts n of them; round tells their keys from another round's.
func startWriters(ctx context.Context, c *cluster.Cluster, n int, round string, pause time.Duration) (*writers, error) {
	ctx, cancel := context.WithCancel(ctx)
	w := &writers{cancel: cancel}
	for i := range n {
		cl, err := c.NewClient(i)
		if err != nil {
			return nil, errors.Join(err, w.stop())
		}
		w.wg.Go(func() {
			w.run(ctx, cl, fmt.Sprintf("%s%d", round, i), pause)
			w.note(0, cl.Close())
		})
	}
	return w, nil
}

func (w *writers) run(ctx context.Context, c *client.Client, name string, pause time.Duration) {
	for there := false; ctx.Err() == nil || there; there = !there {
		// A key that is there is removed even when the time is over.
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		began := time.Now()
		var err error
		if there {
			_, err = c.Keys.RemoveKey(call, &bmcv1.RemoveKeyRequest{Ref: name})
		} else {
			_, err = c.Keys.AddKey(call, &bmcv1.AddKeyRequest{Name: name, PublicKey: measure.PublicKey()})
		}
		cancel()
		w.note(time.Since(began), err)
		if err != nil {
			return
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
}

func (w *writers) note(d time.Duration, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.errs = append(w.errs, err)
	} else if d > 0 {
		w.took = append(w.took, d)
	}
}

// cut returns the latencies since the last cut.
func (w *writers) cut() []time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.took
	w.took = nil
	return out
}

func (w *writers) stop() error {
	w.cancel()
	w.wg.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return errors.Join(w.errs...)
}

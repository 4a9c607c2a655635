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
	"bmc/chaos/history"
	"bmc/client"
)

// failPause is after a write without an acknowledgement.
const failPause = 10 * time.Millisecond

// writers add and remove keys, each one write at a time.
type writers struct {
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	mu       sync.Mutex
	took     []time.Duration
	errs     []error
	lost     int // writes without an acknowledgement, where they may be
	recorded *recorded
}

// startWriters starts n of them; round tells their keys from another round's. Where
// nothing is recorded, a write that fails is counted and the next is made.
func startWriters(ctx context.Context, c *cluster.Cluster, n int, round string, pause time.Duration, r *recorded) (*writers, error) {
	ctx, cancel := context.WithCancel(ctx)
	w := &writers{cancel: cancel, recorded: r}
	for i := range n {
		cl, err := c.NewClient(i)
		if err != nil {
			return nil, errors.Join(err, w.stop())
		}
		w.wg.Go(func() {
			w.run(ctx, cl, i, fmt.Sprintf("%s%d", round, i), pause)
			w.note(0, cl.Close())
		})
	}
	return w, nil
}

func (w *writers) run(ctx context.Context, c *client.Client, id int, name string, pause time.Duration) {
	for there := false; ctx.Err() == nil || there; there = !there {
		// A key that is there is removed even when the time is over.
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		began := time.Now()
		var err error
		request := history.NewRequestID()
		if there {
			err = w.recorded.call(history.Call{Kind: history.RemoveKey, Client: id, Name: name, RequestID: request}, func(*history.Call) error {
				_, err := c.Keys.RemoveKey(call, &bmcv1.RemoveKeyRequest{RequestId: request, Ref: name})
				return err
			})
		} else {
			err = w.recorded.call(history.Call{Kind: history.AddKey, Client: id, Name: name, RequestID: request}, func(a *history.Call) error {
				k, err := c.Keys.AddKey(call, &bmcv1.AddKeyRequest{RequestId: request, Name: name, PublicKey: measure.PublicKey()})
				if err == nil {
					a.Keys = map[string]string{name: k.GetId()}
				}
				return err
			})
		}
		cancel()
		if err != nil && w.recorded == nil {
			w.lose()
			if ctx.Err() != nil {
				return
			}
			t := time.NewTimer(failPause)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
				return
			}
			continue
		}
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

func (w *writers) lose() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost++
}

// failures are the writes without an acknowledgement since the last asking.
func (w *writers) failures() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.lost
	w.lost = 0
	return n
}

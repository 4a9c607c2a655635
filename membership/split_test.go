package membership

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"bmc/internal/freeport"
)

// forgetful is how long a test's members gossip to the dead.
const forgetful = 300 * time.Millisecond

// splittable is a network that can be cut.
type splittable struct {
	*memberlist.NetTransport
	cut *atomic.Bool
}

func (s splittable) WriteTo(b []byte, addr string) (time.Time, error) {
	return s.WriteToAddress(b, memberlist.Address{Addr: addr})
}

func (s splittable) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	if s.cut.Load() {
		return time.Now(), nil // lost, and nobody knows
	}
	return s.NetTransport.WriteToAddress(b, a)
}

func (s splittable) DialTimeout(addr string, d time.Duration) (net.Conn, error) {
	return s.DialAddressTimeout(memberlist.Address{Addr: addr}, d)
}

func (s splittable) DialAddressTimeout(a memberlist.Address, d time.Duration) (net.Conn, error) {
	if s.cut.Load() {
		return nil, errors.New("the network is split")
	}
	return s.NetTransport.DialAddressTimeout(a, d)
}

// openSplittable is open with short times and a network that cut cuts.
func openSplittable(t *testing.T, id, bind string, cut *atomic.Bool, rejoin time.Duration, seeds func() []string) *Membership {
	t.Helper()
	l, err := Open(Config{Self: Member{Kind: KindNode, ID: id, Name: id, Address: "10.0.0.1:7443"}, Bind: bind, Key: bytes.Repeat([]byte{7}, 32),
		Seeds: seeds, RejoinEvery: rejoin, tune: func(mc *memberlist.Config) error {
			mc.ProbeInterval, mc.ProbeTimeout, mc.SuspicionMult = 50*time.Millisecond, 25*time.Millisecond, 1
			mc.GossipInterval, mc.GossipToTheDeadTime, mc.PushPullInterval = 20*time.Millisecond, forgetful, 100*time.Millisecond
			tr, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{mc.BindAddr}, BindPort: mc.BindPort,
				Logger: newLogger(slog.New(slog.DiscardHandler))})
			mc.Transport = splittable{tr, cut}
			return err
		}})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// A split that lasts longer than the dead are gossiped to never heals by itself
// (hashicorp/memberlist#222). Asking the known addresses again and again heals
// it, even from one side alone.
func TestLongSplitHeals(t *testing.T) {
	for name, rejoins := range map[string]bool{"with known addresses": true, "memberlist alone": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var cut, first atomic.Bool
			a, b := freeport.Addr(t), freeport.Addr(t)
			one := openSplittable(t, "node-a", a, &cut, 200*time.Millisecond, func() []string { return nil })
			defer one.Close()
			two := openSplittable(t, "node-b", b, &cut, 200*time.Millisecond, func() []string {
				if rejoins || !first.Swap(true) {
					return []string{a}
				}
				return nil
			})
			defer two.Close()
			both := func(alive bool) func() bool {
				return func() bool { return one.Alive("node-b") == alive && two.Alive("node-a") == alive }
			}
			eventually(t, "they meet", 20*time.Second, both(true))
			cut.Store(true)
			eventually(t, "each holds the other for dead", 20*time.Second, both(false))
			// The split outlasts memberlist's patience: this is the point of the test.
			forgotten := time.NewTimer(4 * forgetful)
			<-forgotten.C
			cut.Store(false)
			if rejoins {
				eventually(t, "they meet again", 20*time.Second, both(true))
				return
			}
			if healed(2*time.Second, both(true)) {
				t.Error("memberlist heals a long split by itself: the rejoining is no longer needed")
			}
		})
	}
}

func healed(within time.Duration, cond func() bool) bool {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(within)
	for !cond() {
		select {
		case <-tick.C:
		case <-limit:
			return false
		}
	}
	return true
}

func eventually(t *testing.T, what string, within time.Duration, cond func() bool) {
	t.Helper()
	if !healed(within, cond) {
		t.Fatalf("never: %s", what)
	}
}

// All seeds but one are dead: the newcomer gets in, and finds the others.
func TestAllButOneSeedDead(t *testing.T) {
	key := bytes.Repeat([]byte{7}, 32)
	a, c := freeport.Addr(t), freeport.Addr(t)
	one := open(t, KindNode, "node-a", a, key)
	defer one.Close()
	two := open(t, KindNode, "node-b", freeport.Addr(t), key, a)
	defer two.Close()
	three := open(t, KindAgent, "agt-c", c, key, freeport.Addr(t), freeport.Addr(t), freeport.Addr(t), a)
	defer three.Close()
	await(t, three, "it meets all", func() bool { return three.Alive("node-a") && three.Alive("node-b") })
}

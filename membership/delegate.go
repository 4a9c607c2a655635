package membership

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/hashicorp/memberlist"
)

// delegate tells others who we are; there is no other traffic.
type delegate struct{ l *Membership }

func (d delegate) NodeMeta(limit int) []byte { return encode(d.l.conf.Self, limit) }

func (delegate) NotifyMsg([]byte)                {}
func (delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (delegate) LocalState(bool) []byte          { return nil }
func (delegate) MergeRemoteState([]byte, bool)   {}

// encode writes a member in at most limit bytes: without its racks, then
// without its version, when they do not fit.
func encode(m Member, limit int) []byte {
	for _, drop := range []func(){func() {}, func() { m.Racks = nil }, func() { m.Version = "" }} {
		drop()
		if b, err := json.Marshal(m); err == nil && len(b) <= limit {
			return b
		}
	}
	return nil
}

// decode reads what encode wrote.
func decode(b []byte) (Member, error) {
	var m Member
	if err := json.Unmarshal(b, &m); err != nil {
		return Member{}, fmt.Errorf("member's metadata: %w", err)
	}
	if m.ID == "" || m.Kind != KindNode && m.Kind != KindAgent {
		return Member{}, errors.New("member's metadata names neither a node nor an agent")
	}
	return m, nil
}

// events follows memberlist's view. Its calls come one at a time.
type events struct{ l *Membership }

func (e events) NotifyJoin(n *memberlist.Node)   { e.l.set(n, true) }
func (e events) NotifyUpdate(n *memberlist.Node) { e.l.set(n, true) }
func (e events) NotifyLeave(n *memberlist.Node)  { e.l.set(n, false) }

func (l *Membership) set(n *memberlist.Node, alive bool) {
	if n.Name == l.conf.Self.ID {
		return
	}
	m, err := decode(n.Meta)
	if err != nil || m.ID != n.Name {
		l.log.Warn("gossip with foreign metadata is ignored", "name", n.Name, "err", err)
		return
	}
	m.Gossip = net.JoinHostPort(n.Addr.String(), strconv.Itoa(int(n.Port)))
	l.mu.Lock()
	_, was := l.alive[m.ID]
	if alive {
		l.alive[m.ID] = m
	} else {
		delete(l.alive, m.ID)
	}
	close(l.changed)
	l.changed = make(chan struct{})
	l.mu.Unlock()
	switch {
	case alive && !was:
		l.log.Info("member is alive", "kind", m.Kind, "id", m.ID, "name", m.Name, "addr", m.Gossip)
	case !alive && was:
		l.log.Info("member is gone", "kind", m.Kind, "id", m.ID, "name", m.Name, "addr", m.Gossip)
	}
}

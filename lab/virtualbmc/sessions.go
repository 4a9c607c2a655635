package virtualbmc

import (
	"context"
	"encoding/binary"
	"net"
	"slices"
	"sync"

	"github.com/bougou/go-ipmi/pkg/bmc"
	"github.com/bougou/go-ipmi/pkg/handlers"
	"github.com/bougou/go-ipmi/pkg/types"
)

// sessions lists the sessions that stand, which the library keeps to itself: it
// is told of them by the packets that open them.
type sessions struct {
	bmc *bmc.BMC

	mu     sync.Mutex
	asked  map[string]uint32 // a console's address -> the session that its RAKP message 3 is about
	active []uint32          // the sessions' IDs here, in the order in which they came

	// turn lets one command at a time be carried out, as on a real controller:
	// when the close of a session is answered, nothing of that session is under
	// way any more.
	turn sync.Mutex
}

func newSessions(b *bmc.BMC) *sessions {
	return &sessions{bmc: b, asked: make(map[string]uint32)}
}

// watchedConn shows packets to sessions.
type watchedConn struct {
	*faultyConn
	sessions *sessions
}

func (c *watchedConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, addr, err := c.faultyConn.ReadFrom(b)
	if err == nil {
		c.sessions.came(b[:n], addr)
	}
	return n, addr, err
}

func (c *watchedConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	c.sessions.sent(b, addr)
	return c.faultyConn.WriteTo(b, addr)
}

// Payload types of the handshake's last two messages (IPMI 2.0, table 13-16), at
// byte 5 of a packet of authentication type 6. Payloads begin at 16.
const (
	rakpMessage3 = 0x14
	rakpMessage4 = 0x15
)

// came notes which session a console is about to complete: a console that
// repeats what was lost may have others pending. Table 13-13: our ID of it is
// at 4.
func (s *sessions) came(b []byte, addr net.Addr) {
	if len(b) < 24 || b[4] != 6 || b[5]&0x3f != rakpMessage3 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[addr.String()] = binary.LittleEndian.Uint32(b[20:24])
}

// sent notes who has completed the handshake. Table 13-14: a status is at 1.
func (s *sessions) sent(b []byte, addr net.Addr) {
	if len(b) < 24 || b[4] != 6 || b[5]&0x3f != rakpMessage4 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	id, ok := s.asked[addr.String()]
	if ok && b[17] == 0 && !slices.Contains(s.active, id) {
		s.active = append(s.active, id)
	}
	delete(s.asked, addr.String())
}

// list is the sessions that stand; others have been closed or have run out.
func (s *sessions) list() []*bmc.Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*bmc.Session
	s.active = slices.DeleteFunc(s.active, func(id uint32) bool {
		sess, err := s.bmc.Sessions.Get(id)
		if err == nil {
			out = append(out, sess)
		}
		return err != nil
	})
	return out
}

// one is a middleware: one command at a time, and none of a session that was
// closed while the command waited.
func (s *sessions) one(next handlers.Handler) handlers.Handler {
	return handlers.HandlerFunc(func(ctx context.Context, h *handlers.HandlerContext, req []byte) ([]byte, types.CompletionCode, error) {
		s.turn.Lock()
		defer s.turn.Unlock()
		if h.Session != nil {
			if _, err := s.bmc.Sessions.Get(h.Session.BMCID); err != nil {
				return nil, types.CompletionCode(0xd5), nil // not in this state
			}
		}
		return next.Handle(ctx, h, req)
	})
}

// register replaces the library's two handlers, which know the asking session alone.
func (s *sessions) register(reg *handlers.Registry) {
	reg.RegisterFunc(types.CommandGetSessionInfo, s.info)
	reg.RegisterFunc(types.CommandCloseSession, s.close)
}

// Ways to ask for a session's info (section 22.20, request byte 1).
const (
	askCurrent  = 0x00
	askByHandle = 0xfe
	askByID     = 0xff
)

// info answers Get Session Info. An index that nobody has is answered by handle
// 0. The privilege is the one that the session was opened with.
func (s *sessions) info(_ context.Context, h *handlers.HandlerContext, req []byte) ([]byte, types.CompletionCode, error) {
	if len(req) < 1 || req[0] == askByHandle && len(req) < 2 || req[0] == askByID && len(req) < 5 {
		return nil, types.CodeRequestDataTruncated, nil
	}
	all := s.list()
	var found *bmc.Session
	switch index := req[0]; index {
	case askCurrent:
		found = h.Session
	case askByHandle:
		found = find(all, func(o *bmc.Session) bool { return o.Handle == req[1] })
	case askByID:
		found = find(all, func(o *bmc.Session) bool { return o.BMCID == binary.LittleEndian.Uint32(req[1:5]) })
	default:
		if int(index) <= len(all) {
			found = all[index-1]
		}
	}
	counts := []byte{0, uint8(s.bmc.Sessions.Cap()), uint8(len(all))}
	if found == nil {
		return counts, types.CodeOK, nil
	}
	counts[0] = found.Handle
	resp := append(counts, found.User.ID, uint8(found.MaxPrivilege), 1<<4|found.Channel&0x0f)
	if ua, ok := found.GetAddr().(*net.UDPAddr); ok && ua.IP.To4() != nil {
		resp = append(resp, ua.IP.To4()...)
		resp = append(resp, 0, 0, 0, 0, 0, 0) // its MAC is not known
		resp = binary.LittleEndian.AppendUint16(resp, uint16(ua.Port))
	}
	return resp, types.CodeOK, nil
}

func find(all []*bmc.Session, is func(*bmc.Session) bool) *bmc.Session {
	if i := slices.IndexFunc(all, is); i >= 0 {
		return all[i]
	}
	return nil
}

// close answers Close Session (section 22.19), by ID, or by handle with ID 0.
func (s *sessions) close(_ context.Context, h *handlers.HandlerContext, req []byte) ([]byte, types.CompletionCode, error) {
	if len(req) < 4 {
		return nil, types.CodeRequestDataTruncated, nil
	}
	id, refused := binary.LittleEndian.Uint32(req), types.CodeCloseSessionInvalidSessionID
	if id == 0 {
		if len(req) < 5 {
			return nil, types.CodeRequestDataTruncated, nil
		}
		refused = types.CodeCloseSessionInvalidSessionHandle
		found := find(s.list(), func(o *bmc.Session) bool { return o.Handle == req[4] })
		if found == nil {
			return nil, refused, nil
		}
		id = found.BMCID
	}
	if h.Session == nil || id != h.Session.BMCID && h.Session.PrivilegeLevel < bmc.PrivilegeLevelAdministrator {
		return nil, types.CompletionCode(0xd4), nil // insufficient privilege
	}
	if s.bmc.Sessions.Close(id) != nil {
		return nil, refused, nil
	}
	return nil, types.CodeOK, nil
}

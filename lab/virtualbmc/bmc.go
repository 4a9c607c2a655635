// Package virtualbmc puts a baseboard management controller in front of a
// machine of the lab: one in Go, or OpenIPMI's ipmi_sim as a second opinion.
package virtualbmc

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/bougou/go-ipmi/pkg/bmc"
	"github.com/bougou/go-ipmi/pkg/clock"
	"github.com/bougou/go-ipmi/pkg/handlers"
	"github.com/bougou/go-ipmi/pkg/server"
	"github.com/bougou/go-ipmi/pkg/transport/udp"
	"github.com/bougou/go-ipmi/pkg/types"

	"bmc/lab/machine"
)

// Machine is what a controller controls.
type Machine interface {
	State() machine.State
	PowerOn(context.Context) error
	PowerOff(context.Context) error
	SoftOff(context.Context) error
	Reset(context.Context) error
	SetBoot(context.Context, machine.Override) error
}

// Config of one controller. User and Password open an administrator's session.
type Config struct {
	Name     string // the machine's
	User     string
	Password string
	Machine  Machine
	Record   *Record // may be nil
	Log      *slog.Logger
}

// lanChannel and adminID are where the controller has its network and its user.
const (
	lanChannel = 1
	adminID    = 2
	maxIPMI    = 20 // bytes of a password in IPMI 2.0
)

// BMC is an IPMI 2.0 controller on one UDP socket.
type BMC struct {
	srv  *server.Server
	stop context.CancelFunc
	wg   sync.WaitGroup

	faults faults
}

// Serve answers on conn, which it owns from now on, until Close.
func Serve(conn *net.UDPConn, cfg Config) (*BMC, error) {
	if len(cfg.Password) > maxIPMI {
		_ = conn.Close()
		return nil, fmt.Errorf("controller of %s: a password has at most %d bytes", cfg.Name, maxIPMI)
	}
	var guid [16]byte
	if _, err := rand.Read(guid[:]); err != nil {
		_ = conn.Close()
		return nil, err
	}
	info := bmc.DeviceInfo{DeviceID: 0x20, DeviceRevision: 1, FirmwareMajor: 1, IPMIVersion: 0x20, ManufacturerID: 0x157, ProductID: 1}
	b := bmc.New(info, guid, &chassis{m: cfg.Machine}, bmc.WithClock(clock.Real), bmc.WithV15Disabled())
	user, err := b.Users.Add(adminID, cfg.User)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("controller of %s: %w", cfg.Name, err)
	}
	user.SetPassword([]byte(cfg.Password))
	user.Enabled = true
	user.ChannelAccess[lanChannel] = bmc.UserChannelAccess{MaxPrivilege: bmc.PrivilegeLevelAdministrator, Enabled: true}

	v := &BMC{}
	reg := handlers.NewRegistry()
	known := newSessions(b)
	reg.Use(known.one) // outermost: the record has the order in which commands were carried out
	reg.Use(v.record(cfg))
	handlers.RegisterAllHandlers(reg)
	known.register(reg)
	reg.RegisterFunc(types.CommandGetDCMIPowerReading, draw(cfg.Machine))
	ctx, stop := context.WithCancel(context.Background())
	// No read timeout: Close ends the read.
	wire := &watchedConn{&faultyConn{Conn: udp.Wrap(conn, udp.WithReadTimeout(0)), faults: &v.faults}, known}
	v.srv, v.stop = server.NewServer(b, wire, server.WithHandlerRegistry(reg)), stop
	v.wg.Add(1)
	go func() {
		defer v.wg.Done()
		if err := v.srv.Serve(ctx); err != nil && ctx.Err() == nil {
			cfg.Log.Error("virtual controller stopped", "server", cfg.Name, "err", err)
		}
	}()
	return v, nil
}

// Close answers nobody any more; the machine stays as it is.
func (b *BMC) Close() error {
	b.stop()
	err := b.srv.Close()
	b.wg.Wait()
	return err
}

// record is called around every command of a session.
func (b *BMC) record(cfg Config) handlers.Middleware {
	return func(next handlers.Handler) handlers.Handler {
		return handlers.HandlerFunc(func(ctx context.Context, h *handlers.HandlerContext, req []byte) ([]byte, types.CompletionCode, error) {
			c := Command{Server: cfg.Name, Time: time.Now().UTC(), Name: h.Command.Name, NetFn: uint8(h.Command.NetFn), Cmd: h.Command.ID}
			if h.User != nil {
				c.User = h.User.Name
			}
			if h.Session != nil {
				c.Session = h.Session.BMCID
				if addr := h.Session.GetAddr(); addr != nil {
					c.From = addr.String()
				}
			}
			if h.Command.NetFn == types.NetFnChassisRequest {
				// Other commands' data may hold a password.
				c.Data = fmt.Sprintf("%x", req)
				c.On = cfg.Machine.State().On
			}
			resp, cc, is := b.faults.misbehave(h)
			var err error
			if is {
				c.Fault = true
			} else {
				resp, cc, err = next.Handle(ctx, h, req)
			}
			c.Took = time.Since(c.Time)
			c.Result = uint8(cc)
			c.OK = cc == types.CodeOK && err == nil
			if c.OK && h.Command.NetFn == types.NetFnChassisRequest && h.Command.ID == getChassisStatus {
				c.Answer = fmt.Sprintf("%x", resp)
			}
			if h.Session != nil { // what anybody may ask without one is no command
				cfg.Record.Add(c)
			}
			if !c.OK {
				cfg.Log.Info("virtual controller refused a command", "server", cfg.Name, "command", c.Name, "code", fmt.Sprintf("%#x", uint8(cc)), "err", err)
			}
			return resp, cc, err
		})
	}
}

package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/bench/process"
)

// postgres is one PostgreSQL server of Debian's package, with its defaults.
type postgres struct {
	child *process.Child
	addr  string
	home  string
}

// postgresBin is the newest version's directory of programs, "" for none.
func postgresBin() string {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(found) == 0 {
		return ""
	}
	slices.Sort(found)
	return found[len(found)-1]
}

// startPostgres runs it as the package's user, who must own its files; root needs
// that, anybody else runs it as himself.
func startPostgres(ctx context.Context, dir string) (_ *postgres, err error) {
	bin := postgresBin()
	if bin == "" {
		return nil, errors.New("PostgreSQL is not installed")
	}
	addr, err := process.FreeAddress()
	if err != nil {
		return nil, err
	}
	// Not below dir: the package's user may not enter the directories above it.
	home, err := os.MkdirTemp("", "bench-postgres-")
	if err != nil {
		return nil, err
	}
	p := &postgres{addr: addr}
	var as []string
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			return nil, err
		}
		uid, err := strconv.Atoi(u.Uid)
		if err != nil {
			return nil, err
		}
		if err := os.Chown(home, uid, -1); err != nil {
			return nil, err
		}
		as = []string{"setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"}
	}
	data := filepath.Join(home, "data")
	initdb := append(slices.Clone(as), filepath.Join(bin, "initdb"), "-D", data, "-A", "trust", "-U", "bench", "--no-sync", "-E", "UTF8", "--locale=C")
	cmd := exec.CommandContext(ctx, initdb[0], initdb[1:]...)
	cmd.Dir = home
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	run := append(slices.Clone(as), filepath.Join(bin, "postgres"), "-D", data, "-p", port, "-h", "127.0.0.1", "-k", home)
	if p.child, err = process.Start(filepath.Join(dir, "postgres.log"), run[0], run[1:]...); err != nil {
		return nil, err
	}
	p.home = home
	return p, process.Until(ctx, "PostgreSQL", func() error {
		c, err := p.dial()
		if err != nil {
			return err
		}
		return c.close()
	})
}

func (p *postgres) close() error {
	// SIGQUIT ends its own children, too; SIGKILL would leave them.
	if err := p.child.Signal(syscall.SIGQUIT); err != nil {
		return err
	}
	<-p.child.Done()
	return os.RemoveAll(p.home)
}

// pgConn speaks the little of PostgreSQL's protocol 3.0 that a measurement needs
// (its manual, chapter 55), without TLS.
type pgConn struct {
	conn net.Conn
	r    *bufio.Reader
}

func (p *postgres) dial() (*pgConn, error) {
	conn, err := net.Dial("tcp", p.addr)
	if err != nil {
		return nil, err
	}
	c := &pgConn{conn, bufio.NewReaderSize(conn, 256<<10)}
	start := []byte{0, 3, 0, 0}
	for _, s := range []string{"user", "bench", "database", "postgres", ""} {
		start = append(append(start, s...), 0)
	}
	if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(start)+4)), start...)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if _, err := c.answer(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return c, nil
}

func (c *pgConn) close() error { return c.conn.Close() }

// message is one typed message with its length.
func message(kind byte, body []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)+4)), body...)
}

// answer reads up to ReadyForQuery and returns the rows as they came.
func (c *pgConn) answer() (rows [][]byte, err error) {
	var failed error
	var head [5]byte
	for {
		if _, err := io.ReadFull(c.r, head[:]); err != nil {
			return nil, err
		}
		body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(c.r, body); err != nil {
			return nil, err
		}
		switch head[0] {
		case 'D':
			rows = append(rows, body)
		case 'E':
			failed = fmt.Errorf("PostgreSQL: %s", strings.ReplaceAll(string(body), "\x00", " "))
		case 'Z':
			return rows, failed
		}
	}
}

// query runs statements as text.
func (c *pgConn) query(sql string) ([][]byte, error) {
	if _, err := c.conn.Write(message('Q', append([]byte(sql), 0))); err != nil {
		return nil, err
	}
	return c.answer()
}

// prepare names a statement; execute runs it with one text parameter.
func (c *pgConn) prepare(name, sql string) error {
	body := append(append([]byte(name), 0), sql...)
	b := message('P', append(body, 0, 0, 0))
	if _, err := c.conn.Write(append(b, message('S', nil)...)); err != nil {
		return err
	}
	_, err := c.answer()
	return err
}

func (c *pgConn) execute(name string, param string) ([][]byte, error) {
	bind := append([]byte{0}, name...)
	bind = append(bind, 0, 0, 0, 0, 1) // no format codes, one parameter
	bind = append(binary.BigEndian.AppendUint32(bind, uint32(len(param))), param...)
	bind = append(bind, 0, 0)
	b := message('B', bind)
	b = append(b, message('E', []byte{0, 0, 0, 0, 0})...)
	if _, err := c.conn.Write(append(b, message('S', nil)...)); err != nil {
		return nil, err
	}
	return c.answer()
}

// pgTable has what our list says of a server that is being enrolled.
const pgTable = `CREATE TABLE servers (name text PRIMARY KEY, id text, rack text, size text, state text, state_since timestamptz,
	power_wanted text, power_observed text, macs text[], address inet, labels jsonb, operation text, deadline timestamptz,
	revision bigint, created timestamptz, oob_address text, serial text)`

func pgQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// fill inserts the servers that our list has answered.
func (p *postgres) fill(all []*bmcv1.Server) error {
	c, err := p.dial()
	if err != nil {
		return err
	}
	defer func() { _ = c.close() }()
	if _, err := c.query(pgTable); err != nil {
		return err
	}
	const atOnce = 1000
	for chunk := range slices.Chunk(all, atOnce) {
		var sql strings.Builder
		sql.WriteString("INSERT INTO servers VALUES ")
		for i, s := range chunk {
			if i > 0 {
				sql.WriteByte(',')
			}
			var labels []string
			for k, v := range s.GetLabels() {
				labels = append(labels, strconv.Quote(k)+":"+strconv.Quote(v))
			}
			text := []string{s.GetName(), s.GetId(), s.GetRack(), s.GetSize(), s.GetState(), s.GetStateSince().AsTime().Format("2006-01-02 15:04:05.999999Z"),
				s.GetPower().GetWanted(), s.GetPower().GetObserved(), "{" + strings.Join(s.GetMacs(), ",") + "}", s.GetAddress(),
				"{" + strings.Join(labels, ",") + "}", s.GetOperationId(), s.GetDeadline().AsTime().Format("2006-01-02 15:04:05.999999Z"),
				strconv.FormatUint(s.GetResourceVersion(), 10), s.GetCreated().AsTime().Format("2006-01-02 15:04:05.999999Z"), s.GetOobAddress(), s.GetSerial()}
			for j := range text {
				text[j] = pgQuote(text[j])
			}
			sql.WriteString("(" + strings.Join(text, ",") + ")")
		}
		if _, err := c.query(sql.String()); err != nil {
			return err
		}
	}
	_, err = c.query("VACUUM ANALYZE servers")
	return err
}

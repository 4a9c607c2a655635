package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
)

// qmp is a client of QEMU's machine protocol (docs/interop/qmp-spec) on one
// connection. Its reader ends with the connection.
type qmp struct {
	conn    net.Conn
	onEvent func(name string)

	mu      sync.Mutex
	nextID  int
	waiting map[int]chan qmpReply
	err     error // set once the reader has ended
	done    chan struct{}
}

type qmpReply struct {
	ID     int             `json:"id"`
	Event  string          `json:"event"`
	Return json.RawMessage `json:"return"`
	Error  *qmpError       `json:"error"`
}

type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *qmpError) Error() string { return e.Desc }

var errQMPClosed = errors.New("machine monitor is closed")

// dialQMP negotiates on conn, which it owns from now on. onEvent is called from
// the reader: it must not call execute itself.
func dialQMP(ctx context.Context, conn net.Conn, onEvent func(string)) (*qmp, error) {
	q := &qmp{conn: conn, onEvent: onEvent, waiting: map[int]chan qmpReply{}, done: make(chan struct{})}
	go q.read()
	if err := q.execute(ctx, "qmp_capabilities", nil); err != nil {
		return nil, errors.Join(fmt.Errorf("negotiate with the machine monitor: %w", err), q.close())
	}
	return q, nil
}

func (q *qmp) read() {
	dec := json.NewDecoder(q.conn)
	var err error
	for {
		var r qmpReply
		if err = dec.Decode(&r); err != nil {
			break
		}
		if r.Event != "" {
			q.onEvent(r.Event)
			continue
		}
		q.mu.Lock()
		c := q.waiting[r.ID]
		delete(q.waiting, r.ID)
		q.mu.Unlock()
		if c != nil { // the greeting has no ID
			c <- r
		}
	}
	q.mu.Lock()
	q.err = fmt.Errorf("%w: %w", errQMPClosed, err)
	q.mu.Unlock()
	close(q.done)
}

// execute runs one command and waits for its answer.
func (q *qmp) execute(ctx context.Context, command string, args map[string]any) error {
	answer := make(chan qmpReply, 1)
	q.mu.Lock()
	if q.err != nil {
		q.mu.Unlock()
		return q.err
	}
	q.nextID++
	id := q.nextID
	q.waiting[id] = answer
	msg := map[string]any{"execute": command, "id": id}
	if args != nil {
		msg["arguments"] = args
	}
	raw, err := json.Marshal(msg)
	if err == nil {
		_, err = q.conn.Write(append(raw, '\n'))
	}
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		delete(q.waiting, id)
		q.mu.Unlock()
	}()
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	select {
	case r := <-answer:
		if r.Error != nil {
			return fmt.Errorf("%s: %w", command, r.Error)
		}
		return nil
	case <-q.done:
		return fmt.Errorf("%s: %w", command, errQMPClosed)
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", command, ctx.Err())
	}
}

func (q *qmp) close() error {
	err := q.conn.Close()
	<-q.done
	return err
}

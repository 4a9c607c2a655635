package machine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// monitor answers as QEMU does; a command named "mute" gets no answer.
func monitor(t *testing.T, conn net.Conn) {
	t.Helper()
	go func() {
		fmt.Fprintln(conn, `{"QMP": {"version": {}, "capabilities": []}}`)
		lines := bufio.NewScanner(conn)
		for lines.Scan() {
			var m struct {
				Execute string
				ID      int
			}
			if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
				t.Errorf("bad request %q", lines.Text())
			}
			switch m.Execute {
			case "mute":
			case "fail":
				fmt.Fprintf(conn, `{"id": %d, "error": {"class": "GenericError", "desc": "no such thing"}}`+"\n", m.ID)
			case "hangup":
				conn.Close()
				return
			default:
				fmt.Fprintln(conn, `{"event": "RESET", "data": {}, "timestamp": {}}`)
				fmt.Fprintf(conn, `{"id": %d, "return": {}}`+"\n", m.ID)
			}
		}
	}()
}

func TestQMP(t *testing.T) {
	a, b := net.Pipe()
	monitor(t, b)
	events := make(chan string, 10)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	q, err := dialQMP(ctx, a, func(e string) { events <- e })
	if err != nil {
		t.Fatal(err)
	}
	if err := q.execute(ctx, "cont", nil); err != nil {
		t.Fatal(err)
	}
	if e := <-events; e != "RESET" {
		t.Fatalf("event %q", e)
	}
	if err := q.execute(ctx, "fail", nil); err == nil || !strings.Contains(err.Error(), "no such thing") {
		t.Fatalf("error %v", err)
	}
	short, stop := context.WithTimeout(ctx, time.Millisecond)
	defer stop()
	if err := q.execute(short, "mute", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v", err)
	}
	if err := q.execute(ctx, "hangup", nil); !errors.Is(err, errQMPClosed) {
		t.Fatalf("error %v", err)
	}
	if err := q.execute(ctx, "cont", nil); !errors.Is(err, errQMPClosed) {
		t.Fatalf("error %v", err)
	}
	if err := q.close(); err != nil {
		t.Fatal(err)
	}
}

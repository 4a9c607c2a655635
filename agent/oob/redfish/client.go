package redfish

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"bmc/agent/oob/goipmi"
)

const (
	maxBody     = 1 << 20 // bytes of an answer that are read
	maxSentence = 200     // of a controller's own words, in an error
	dialFor     = 5 * time.Second
)

// client is one connection to a service, that is kept: a TLS handshake costs many
// controllers a second. It never follows a redirect, which could take a password elsewhere.
type client struct {
	http *http.Client
	base string // "https://host:port"
	cfg  Config

	token string // X-Auth-Token; "" until a session stands, or with
	basic bool   // a name and a password in each request, for a service without sessions
}

// newClient believes any certificate: controllers sign their own.
func newClient(cfg Config) *client {
	return &client{cfg: cfg, base: "https://" + net.JoinHostPort(cfg.Host, strconv.Itoa(cfg.Port)), http: &http.Client{
		Transport: &http.Transport{
			DialContext:         dial,
			TLSClientConfig:     &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}, //nolint:gosec // see above
			TLSHandshakeTimeout: 2 * dialFor,
			MaxConnsPerHost:     1, // one call at a time
			IdleConnTimeout:     time.Minute,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// conn is a connection that can be barred, for good: then nothing is sent on it any more.
type conn struct {
	net.Conn
	barred atomic.Bool
}

func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := (&net.Dialer{Timeout: dialFor, KeepAlive: 15 * time.Second}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c}, nil
}

func (c *conn) Write(b []byte) (int, error) {
	if c.barred.Load() {
		return 0, net.ErrClosed
	}
	return c.Conn.Write(b)
}

// reply is a response that is no refusal.
type reply struct {
	header http.Header
	body   []byte
}

func (c *client) get(ctx context.Context, path string, into any) (http.Header, error) {
	r, err := c.do(ctx, http.MethodGet, path, nil, nil)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(r.body, into); err != nil {
		return nil, fmt.Errorf("%w: %s is no JSON that Redfish knows: %w", goipmi.ErrRefused, path, err)
	}
	return r.header, nil
}

// send does a request, when look, called once its connection stands, has no error: a service
// may have closed the one before, and a dial with its handshake may take seconds.
func (c *client) send(ctx context.Context, look func() error, method, path string, header http.Header, body any) (*reply, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var kept error
	r, err := c.do(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		// In this goroutine, and again should net/http take another connection.
		GotConn: func(got httptrace.GotConnInfo) {
			if kept == nil {
				kept = look()
			}
			if kept != nil {
				cancel()                                                  // which may come too late for what is written next
				got.Conn.(*tls.Conn).NetConn().(*conn).barred.Store(true) // dial's
			}
		},
	}), method, path, header, body)
	if kept != nil {
		return nil, kept
	}
	return r, err
}

// do sends a request, once, and waits for its answer until ctx ends.
func (c *client) do(ctx context.Context, method, path string, header http.Header, body any) (*reply, error) {
	if !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("%w: it refers to %.80q, which is not on it", goipmi.ErrRefused, path)
	}
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("OData-Version", "4.0")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	switch {
	case c.token != "":
		req.Header.Set("X-Auth-Token", c.token)
	case c.basic:
		req.SetBasicAuth(c.cfg.Username, c.cfg.Password)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var at *url.Error // without the path: digits of Systems/401 would read as a status
		if errors.As(err, &at) {
			err = at.Err
		}
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, c.refusal(resp.StatusCode, text)
	}
	return &reply{resp.Header, text}, nil
}

// status is a refusal's HTTP status and what the service says of it.
type status struct {
	code    int
	id      string // of a message of DMTF's registries, without version
	message string
}

func (s *status) Error() string {
	if s.message == "" {
		return "HTTP status " + strconv.Itoa(s.code)
	}
	return "HTTP status " + strconv.Itoa(s.code) + ": " + s.message
}

// refusal gives a status the error that the driver's callers tell apart. 401 says that
// a session is over: controllers forget them when they restart. Services say by many
// statuses that no session is left, also by those of a wrong password. The sentence may
// quote what was sent.
func (c *client) refusal(code int, text []byte) error {
	s := &status{code: code}
	s.id, s.message = said(text)
	if c.cfg.Password != "" {
		s.message = strings.ReplaceAll(s.message, c.cfg.Password, "***")
	}
	s.message = strings.ToValidUTF8(s.message[:min(len(s.message), maxSentence)], "")
	kind := goipmi.ErrRefused
	switch {
	case slices.Contains(noRoom, s.id):
		kind = goipmi.ErrBusy
	case code == http.StatusUnauthorized && c.token != "":
		kind = goipmi.ErrClosed
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		kind = goipmi.ErrAuth
	case code >= 500 && code != http.StatusNotImplemented, code == http.StatusTooManyRequests, code == http.StatusConflict:
		kind = goipmi.ErrBusy
	}
	return fmt.Errorf("%w: %w", kind, s)
}

// noRoom are the messages of DMTF's Base registry by which a login is refused for now.
var noRoom = []string{"SessionLimitExceeded", "CreateLimitReachedForResource"}

// said is the first message of an error response (DSP0266, 8.6).
func said(text []byte) (id, message string) {
	var body struct {
		Error struct {
			Code    string `json:"code"`
			Message string `json:"message"`
			Info    []struct {
				MessageID string `json:"MessageId"`
				Message   string `json:"Message"`
			} `json:"@Message.ExtendedInfo"`
		} `json:"error"`
	}
	if json.Unmarshal(text, &body) != nil {
		return "", ""
	}
	id, message = body.Error.Code, body.Error.Message
	if info := body.Error.Info; len(info) > 0 {
		id, message = info[0].MessageID, info[0].Message
	}
	return id[strings.LastIndexByte(id, '.')+1:], message
}

// statusOf is the HTTP status of a refusal; 0: err is none.
func statusOf(err error) int {
	var s *status
	if errors.As(err, &s) {
		return s.code
	}
	return 0
}

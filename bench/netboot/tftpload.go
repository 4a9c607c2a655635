package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"golang.org/x/net/ipv4"

	stats "bmc/bench/measure"
)

const loaderName = "ipxe.efi"

// blockSize is what firmware asks for: an Ethernet frame.
const blockSize = 1468

type tftpResult struct {
	bytes   int64
	files   int
	resends int
	errors  int
	elapsed time.Duration
	first   []time.Duration // from the request to the first block
}

func (r tftpResult) rate() float64      { return float64(r.bytes) / 1e6 / r.elapsed.Seconds() }
func (r tftpResult) p99() time.Duration { return stats.Percentile(sorted(r.first), 99) }

// download is one client's transfer.
type download struct {
	source  []byte // control message with its address
	server  *net.UDPAddr
	peer    *net.UDPAddr // the server's TID; nil until it has answered
	last    []byte       // the packet to repeat
	window  int
	block   int // the next one
	got     int // of the window
	gap     bool
	started time.Time
	sent    time.Time
}

type tftpLoader struct {
	tftpResult
	clients []download
	request []byte
	out     []ipv4.Message
}

// tftpLoad has n clients fetch the loader again and again.
func tftpLoad(network, n, window int, length time.Duration) (tftpResult, error) {
	c, err := open("", 0, true)
	if err != nil {
		return tftpResult{}, err
	}
	defer func() { _ = c.Close() }()
	l := &tftpLoader{clients: make([]download, n)}
	l.request = append([]byte{0, 1}, loaderName+"\x00octet\x00tsize\x000\x00blksize\x00"+strconv.Itoa(blockSize)+"\x00"...)
	if window > 1 {
		l.request = append(l.request, "windowsize\x00"+strconv.Itoa(window)+"\x00"...)
	}
	began := time.Now()
	for i := range l.clients {
		d := &l.clients[i]
		d.source = sourceAddr(clientAddr(network, i))
		d.server = &net.UDPAddr{IP: net.IPv4(10, byte(network), 0, 1), Port: 69}
		l.begin(d, began)
	}
	in := buffers()
	defer l.breakOff(c)
	for sweep := began.Add(sweepTime); l.elapsed < length; {
		if err := flush(c, l.out); err != nil {
			return l.tftpResult, err
		}
		l.out = l.out[:0]
		k, err := receive(c, in, sweep)
		if err != nil {
			return l.tftpResult, err
		}
		now := time.Now()
		l.elapsed = now.Sub(began)
		for i := range k {
			at := localAddr(in[i].OOB[:in[i].NN])
			if who := int(at[3]) - 1; at[2] == 1 && who >= 0 && who < n {
				l.receive(&l.clients[who], in[i].Buffers[0][:in[i].N], in[i].Addr, now)
			}
		}
		if !now.Before(sweep) {
			sweep = now.Add(sweepTime)
			l.resend(now)
		}
	}
	if l.bytes == 0 || l.errors > 0 {
		return l.tftpResult, errors.Join(errTransfers, fmt.Errorf("%d bytes, %d errors", l.bytes, l.errors))
	}
	return l.tftpResult, nil
}

var errTransfers = errors.New("transfers failed")

// breakOff ends what is under way, so that no server goes on with it in the next run.
func (l *tftpLoader) breakOff(c *ipv4.PacketConn) {
	l.out = l.out[:0]
	for i := range l.clients {
		l.send(&l.clients[i], []byte{0, 5, 0, 0, 'e', 'n', 'd', 0}, time.Time{})
	}
	_ = flush(c, l.out) // as good as it goes
}

func (l *tftpLoader) begin(d *download, now time.Time) {
	d.peer, d.block, d.got, d.gap, d.window = nil, 1, 0, false, 1
	d.started = now
	l.send(d, l.request, now)
}

func (l *tftpLoader) send(d *download, packet []byte, now time.Time) {
	d.last, d.sent = packet, now
	to := d.peer
	if to == nil {
		to = d.server
	}
	l.out = append(l.out, ipv4.Message{Buffers: [][]byte{packet}, OOB: d.source, Addr: to})
}

func (l *tftpLoader) ack(d *download, now time.Time) {
	d.got = 0
	l.send(d, binary.BigEndian.AppendUint16([]byte{0, 4}, uint16(d.block-1)), now)
}

func (l *tftpLoader) receive(d *download, b []byte, from net.Addr, now time.Time) {
	peer, ok := from.(*net.UDPAddr)
	if !ok || len(b) < 4 || d.peer != nil && d.peer.Port != peer.Port {
		return
	}
	switch binary.BigEndian.Uint16(b) {
	case 6:
		if d.peer != nil {
			return
		}
		d.peer = peer
		d.window = max(tftpOption(b[2:], "windowsize"), 1)
		l.ack(d, now)
	case 5:
		if d.peer != nil || d.sent.Equal(d.started) {
			l.errors++
		}
	case 3:
		d.peer = peer
		l.data(d, b, now)
	}
}

func (l *tftpLoader) data(d *download, b []byte, now time.Time) {
	number := binary.BigEndian.Uint16(b[2:])
	if number != uint16(d.block) {
		if !d.gap && int16(number-uint16(d.block)) > 0 {
			d.gap = true
			l.resends++
			l.ack(d, now)
		}
		return
	}
	if d.block == 1 {
		l.first = append(l.first, now.Sub(d.started))
	}
	d.block++
	d.got++
	d.gap = false
	l.bytes += int64(len(b) - 4)
	if len(b)-4 < blockSize {
		l.files++
		l.ack(d, now)
		l.begin(d, now)
		return
	}
	if d.got == d.window {
		l.ack(d, now)
	}
}

func (l *tftpLoader) resend(now time.Time) {
	for i := range l.clients {
		if d := &l.clients[i]; now.Sub(d.sent) > patience {
			l.resends++
			l.send(d, d.last, now)
		}
	}
}

func tftpOption(b []byte, name string) int {
	f := bytes.Split(b, []byte{0})
	for i := 0; i+1 < len(f); i += 2 {
		if string(f[i]) == name {
			n, _ := strconv.Atoi(string(f[i+1]))
			return n
		}
	}
	return 0
}

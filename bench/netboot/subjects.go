package main

import (
	"context"
	"fmt"
	"time"
)

// storm is how many machines are powered on at once.
const storm = 500

// windowed is the windowsize that the windowed clients ask for.
const windowed = 16

func (r *rig) subjects() []subject {
	dhcp := []string{"kea", "dnsmasq", limit}
	tftp := []string{"dnsmasq", "atftpd", rolePin, limit}
	list := []subject{
		r.dhcp("DHCP, 64 in flight", dhcp, 64),
		r.dhcp("DHCP, 256 in flight", dhcp, 256),
		r.storm(dhcp),
	}
	for _, n := range []int{50, clients} {
		list = append(list, r.tftp(fmt.Sprintf("TFTP, %d clients in lock-step", n), tftp, n, 1))
	}
	for _, n := range []int{50, clients} { // dnsmasq 2.90, pin/tftp and the limit have none
		list = append(list, r.tftp(fmt.Sprintf("TFTP, %d clients with windows of %d", n, windowed), []string{"dnsmasq", "atftpd", rolePin}, n, windowed))
	}
	for _, n := range []int{1, 10, 50} {
		list = append(list, r.http(fmt.Sprintf("HTTP image, %d clients", n), n))
	}
	return list
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func (r *rig) dhcp(name string, peers []string, inFlight int) subject {
	return subject{
		name: name, peers: peers,
		figures: []figure{{"handshakes", "1/s", aims{"kea": "at least 2.5 x", "dnsmasq": ""}}, {"processor each", "us", aims{"kea": "at most 18 us"}}, {"p99", "ms", nil}, {"resends", "1", aims{"kea": "none"}}},
		run: func(_ context.Context, sv *server) ([]float64, error) {
			before := sv.cpu()
			res, err := dhcpLoad(sv.cable(), inFlight, 0, r.length)
			if err != nil {
				return nil, err
			}
			each := micros(sv.cpu()-before) / float64(res.done)
			return []float64{res.rate(), each, micros(res.p99()) / 1000, float64(res.resends)}, nil
		},
	}
}

// storm lets each machine ask once, all at the same moment.
func (r *rig) storm(peers []string) subject {
	return subject{
		name: fmt.Sprintf("DHCP, %d machines at once", storm), peers: peers,
		figures: []figure{{"until all have an address", "ms", aims{"kea": "", "dnsmasq": ""}}, {"resends", "1", aims{"kea": "none"}}},
		run: func(_ context.Context, sv *server) ([]float64, error) {
			res, err := dhcpLoad(sv.cable(), storm, storm, 20*time.Second)
			if err != nil {
				return nil, err
			}
			return []float64{micros(res.elapsed) / 1000, float64(res.resends)}, nil
		},
	}
}

func (r *rig) tftp(name string, peers []string, n, window int) subject {
	first := aims(nil)
	if n == clients {
		first = aims{"dnsmasq": "at most 15 ms", "atftpd": ""}
	}
	return subject{
		name: name, peers: peers,
		figures: []figure{{"sent", "MB/s", aims{"dnsmasq": "ahead", "atftpd": "ahead"}}, {"processor", "us/MB", nil}, {"first block p99", "ms", first}, {"resends", "1", nil}},
		run: func(_ context.Context, sv *server) ([]float64, error) {
			before := sv.cpu()
			res, err := tftpLoad(sv.net, n, window, r.length)
			if err != nil {
				return nil, err
			}
			each := micros(sv.cpu()-before) / (float64(res.bytes) / 1e6)
			return []float64{res.rate(), each, micros(res.p99()) / 1000, float64(res.resends)}, nil
		},
	}
}

func (r *rig) http(name string, n int) subject {
	beside := aims{"nginx": ""}
	if n == 50 {
		beside["nginx"] = "at least 1.25 x"
	}
	return subject{
		name: name, peers: []string{"nginx", limit},
		figures: []figure{{"sent", "GB/s", beside}, {"processor", "ms/GB", nil}},
		run: func(ctx context.Context, sv *server) ([]float64, error) {
			before := sv.cpu()
			res, err := httpLoad(ctx, sv.addr(), r.digests, n, r.length)
			if err != nil {
				return nil, err
			}
			each := micros(sv.cpu()-before) / 1000 / (float64(res.bytes) / 1e9)
			return []float64{res.rate(), each}, nil
		},
	}
}

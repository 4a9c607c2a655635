package goipmi

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"time"

	"github.com/bougou/go-ipmi/pkg/types"
)

// IPMI runs over UDP, which loses packets. A request that changes nothing, or
// nothing when it comes twice, is asked again: under a new sequence number,
// since a controller drops a number that it has seen (IPMI 2.0 section
// 6.12.13), so that its late answer is not taken for another one's. What acts
// is sent once, and its effect read.
const (
	firstWait = time.Second // for an answer; half as much again each time,
	mostWaits = 3           // up to so many first ones
	askTimes  = 5           // 11 s altogether
)

// longer is the wait after wait.
func longer(wait, first time.Duration) time.Duration { return min(wait*3/2, mostWaits*first) }

// jittered is up to a quarter longer: many sessions that lost their packets to
// one burst do not make the next.
func jittered(wait time.Duration) time.Duration { return wait + rand.N(wait/4+1) }

// ask calls f until it is answered, at most askTimes.
func (c *Conn) ask(ctx context.Context, f func(context.Context) error) error {
	wait := c.cfg.Wait
	for n := 1; ; n++ {
		lost, err := once(ctx, jittered(wait), f)
		if !lost || n == askTimes || ctx.Err() != nil {
			return err
		}
		wait = longer(wait, c.cfg.Wait)
	}
}

// once calls f with that much time. lost: it ran out without an answer.
func once(ctx context.Context, wait time.Duration, f func(context.Context) error) (lost bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	err = f(ctx)
	if err == nil || answered(err) {
		return false, err
	}
	deadline, _ := ctx.Deadline()
	var timeout net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() || !time.Now().Before(deadline), err
}

// answered says that an error is what the controller answered.
func answered(err error) bool {
	var response *types.ResponseError
	var status *types.RmcpStatusError
	return errors.As(err, &response) || errors.As(err, &status)
}

package agent

import (
	"context"
	"time"

	agentv1 "bmc/api/agent/v1"
	"bmc/internal/pause"
)

const (
	renewCheck   = time.Hour
	renewSoon    = 5 * time.Minute // when a renewal failed
	renewExpired = 2 * time.Second // likewise, and nothing else is allowed any more
)

// renewCertificate replaces the agent's certificate when a third of its life
// has gone; an expired one may still renew.
func (a *Agent) renewCertificate(ctx context.Context) {
	for {
		leaf := a.creds.cert.Load().Leaf
		due := leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 3)
		wait := renewCheck
		if now := time.Now(); now.After(due) {
			if err := a.renewNow(ctx); err != nil {
				a.log.Warn("certificate not renewed", "err", err)
				if wait = renewSoon; now.After(leaf.NotAfter) {
					wait = renewExpired
				}
			} else {
				a.log.Info("certificate renewed")
			}
		}
		if pause.For(ctx, wait) != nil {
			return
		}
	}
}

func (a *Agent) renewNow(ctx context.Context) error {
	key, csr, err := newKey()
	if err != nil {
		return err
	}
	next := *a.id // the certificate aside, it never changes
	err = a.nodes.call(ctx, issueLimit, func(ctx context.Context, c agentv1.ControlClient) error {
		resp, err := c.RenewCertificate(ctx, &agentv1.RenewCertificateRequest{Csr: csr})
		next.Certificate, next.Key = resp.GetCertificate(), key
		return err
	})
	if err != nil {
		return err
	}
	if err := next.save(a.cfg.DataDir); err != nil {
		return err
	}
	if err := a.creds.set(&next); err != nil {
		return err
	}
	a.nodes.redial() // what is open shows the old one
	return nil
}

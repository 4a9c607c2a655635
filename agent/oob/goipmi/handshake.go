package goipmi

import (
	"context"
	"crypto/aes"
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/bougou/go-ipmi/pkg/crypto"
	"github.com/bougou/go-ipmi/pkg/rmcpplus"
	"github.com/bougou/go-ipmi/pkg/types"
)

// Payload types of the handshake's requests; each answer's is one more.
const (
	openSession = 0x10
	rakp1       = 0x12
	rakp3       = 0x14
)

// errDowngrade says that a controller answered with other algorithms than asked for.
var errDowngrade = errors.New("the controller chose other algorithms")

// errCrossed says that a controller refused the end of a handshake whose user and
// password were proven by RAKP message 2: it drew another random number for a message
// 1 that was sent again and overtaken, or has dropped the session in the making.
var errCrossed = errors.New("a message of the handshake was overtaken by a later one")

// handshake makes a session (IPMI 2.0 sections 13.15 to 13.24). One that is begun again
// has another port, so that a late answer to the former is not taken for its own.
type handshake struct {
	port     *port
	wait     time.Duration // for the first answer
	user     string
	password string

	auth types.AuthAlg
	s    *session // what is known of it so far
	role uint8
	rc   [16]byte // our random number, and the controller's
	rm   [16]byte
	guid [16]byte
}

func (h *handshake) run(ctx context.Context, suite types.CipherSuiteID) (*session, error) {
	auth, integrity, crypt, ok := types.GetCipherSuiteAlgorithms(suite)
	if !ok || crypt != types.CryptAlg_None && crypt != types.CryptAlg_AES_CBC_128 {
		return nil, fmt.Errorf("%w: cipher suite %d is not supported", ErrRefused, suite)
	}
	h.auth = auth
	h.s = &session{console: h.port.id, integrity: integrity, crypt: crypt, password: h.password}
	if err := h.openSession(ctx); err != nil {
		return nil, err
	}
	if err := h.rakp1(ctx); err != nil {
		return nil, err
	}
	if err := h.rakp3(ctx); err != nil {
		return nil, err
	}
	return h.s, nil
}

func (h *handshake) openSession(ctx context.Context) error {
	req := &rmcpplus.OpenSessionRequest{RemoteConsoleSessionID: h.port.id} // privilege 0: the highest for these algorithms
	req.AuthenticationPayload, req.IntegrityPayload, req.ConfidentialityPayload = rmcpplus.NewAlgorithmPayloads(h.auth, h.s.integrity, h.s.crypt)
	p, err := h.step(ctx, openSession, req.Pack())
	if err != nil {
		return err
	}
	resp := &rmcpplus.OpenSessionResponse{}
	if err := resp.Unpack(p); err != nil {
		return err
	}
	if types.AuthAlg(resp.AuthAlg) != h.auth || types.IntegrityAlg(resp.IntegrityAlg) != h.s.integrity || types.CryptAlg(resp.CryptAlg) != h.s.crypt {
		return errDowngrade
	}
	h.s.bmc = resp.ManagedSystemSessionID
	return nil
}

func (h *handshake) rakp1(ctx context.Context) error {
	_, _ = rand.Read(h.rc[:]) // never fails
	req := &rmcpplus.RAKPMessage1{
		ManagedSystemSessionID: h.s.bmc, RemoteConsoleRandomNumber: h.rc,
		NameOnlyLookup: true, RequestedMaximumPrivilegeLevel: types.PrivilegeLevelAdministrator,
		UsernameLength: uint8(len(h.user)), Username: []byte(h.user),
	}
	h.role = req.Role()
	p, err := h.step(ctx, rakp1, req.Pack())
	if err != nil {
		return err
	}
	resp := &rmcpplus.RAKPMessage2{AuthAlg: h.auth}
	if err := resp.Unpack(p); err != nil {
		return err
	}
	h.rm, h.guid = resp.ManagedSystemRandomNumber, resp.ManagedSystemGUID
	code, err := crypto.RAKP2AuthCode(h.auth, h.port.id, h.s.bmc, h.rc[:], h.rm[:], h.guid[:], h.role, h.user, h.key())
	if err == nil {
		code, err = crypto.TruncateRAKP2AuthCode(h.auth, code)
	}
	if err != nil {
		return err
	}
	if !hmac.Equal(code, resp.KeyExchangeAuthenticationCode) {
		return fmt.Errorf("%w: RAKP message 2 is signed by another password", ErrAuth)
	}
	return nil
}

func (h *handshake) rakp3(ctx context.Context) error {
	code, err := crypto.RAKP3AuthCode(h.auth, h.rm[:], h.port.id, h.role, h.user, h.key())
	if err != nil {
		return err
	}
	p, err := h.step(ctx, rakp3, (&rmcpplus.RAKPMessage3{ManagedSystemSessionID: h.s.bmc, KeyExchangeAuthenticationCode: code}).Pack())
	if h.auth != types.AuthAlg_None && crossed(err) {
		return fmt.Errorf("%w: %w", errCrossed, err)
	}
	if err != nil {
		return err
	}
	resp := &rmcpplus.RAKPMessage4{AuthAlg: h.auth}
	if err := resp.Unpack(p); err != nil {
		return err
	}
	sik, k1, k2, err := crypto.DeriveSessionKeys(h.auth, h.rc[:], h.rm[:], h.role, h.user, h.key())
	if err != nil {
		return err
	}
	icv, err := crypto.RAKP4ICV(h.auth, h.rc[:], h.s.bmc, h.guid[:], sik)
	if err != nil {
		return err
	}
	if !hmac.Equal(icv, resp.IntegrityCheckValue) {
		return fmt.Errorf("%w: RAKP message 4 is signed by another key", ErrAuth)
	}
	h.s.k1 = k1
	if h.s.crypt == types.CryptAlg_AES_CBC_128 {
		if len(k2) < aes.BlockSize {
			return fmt.Errorf("%w: no key to encrypt by", ErrRefused)
		}
		if h.s.block, err = aes.NewCipher(k2[:aes.BlockSize]); err != nil {
			return err
		}
	}
	return nil
}

// crossed says whether a refusal of RAKP message 3 is of its signature or of its session.
func crossed(err error) bool {
	var status *types.RmcpStatusError
	if !errors.As(err, &status) {
		return false
	}
	switch status.StatusCode() {
	case types.RmcpStatusCodeUnauthorizedName, types.RmcpStatusCodeInvalidIntegrityCheckValue,
		types.RmcpStatusCodeInvalidSessionID, types.RmcpStatusCodeInactiveSessionID:
		return true
	}
	return false
}

func (h *handshake) key() []byte { return crypto.PadPassword20([]byte(h.password)) }

// step sends a request of the handshake until it is answered, each time with
// another tag, for at most exchangeWaits. The answer's status is looked at.
func (h *handshake) step(ctx context.Context, payload byte, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, exchangeWaits*h.wait)
	defer cancel()
	p := append(make([]byte, 0, payloadAt+len(body)), rmcpHeader...)
	p = append(p, rmcpPlus, payload, 0, 0, 0, 0, 0, 0, 0, 0) // no session, no sequence
	p = binary.LittleEndian.AppendUint16(p, uint16(len(body)))
	p = append(p, body...)
	for wait := h.wait; ; wait = longer(wait, h.wait) {
		if err := h.port.send(p); err != nil {
			return nil, err
		}
		answer, err := h.await(ctx, jittered(wait), payload, p[payloadAt])
		switch {
		case err != nil:
			return nil, err
		case answer != nil:
			if status := types.RmcpStatusCode(answer[1]); status != types.RmcpStatusCodeNoErrors {
				return nil, types.NewRmcpStatusError(status)
			}
			return answer, nil
		}
		p[payloadAt]++
	}
}

// await returns the answer's payload, or nil after that time. A controller may
// draw a new random number for each RAKP message 1, so only the last one's counts.
func (h *handshake) await(ctx context.Context, wait time.Duration, payload, tag byte) ([]byte, error) {
	t := time.NewTimer(wait)
	defer t.Stop()
	for {
		select {
		case p := <-h.port.in:
			if len(p) < payloadAt+2 || p[payloadTypeAt] != payload+1 {
				continue
			}
			if got := p[payloadAt]; got == tag || payload != rakp1 && got < tag {
				return p[payloadAt:], nil
			}
		case <-t.C:
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

package rpc

import (
	"context"

	bmcv1 "bmc/api/bmc/v1"
	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"

	"golang.org/x/crypto/ssh"
)

// maxPublicKey bounds an authorized_keys line.
const maxPublicKey = 16 << 10

type keys struct {
	bmcv1.UnimplementedKeysServer
	*API
}

func (s *keys) AddKey(ctx context.Context, req *bmcv1.AddKeyRequest) (*bmcv1.SSHKey, error) {
	if err := metal.ValidateName("name", req.GetName()); err != nil {
		return nil, err
	}
	if err := validatePublicKey("public_key", req.GetPublicKey()); err != nil {
		return nil, err
	}
	id, err := s.newID("key")
	if err != nil {
		return nil, err
	}
	res, err := s.change(ctx, req, func(v *state.View) (*logpb.Command, error) {
		project, err := s.projectOf(ctx, v, req.GetProject())
		if err != nil {
			return nil, err
		}
		return &logpb.Command{Command: &logpb.Command_AddKey{AddKey: &logpb.AddKey{Key: &logpb.SSHKey{
			Id: id, Name: req.GetName(), Project: project.ID, PublicKey: req.GetPublicKey()}}}}, nil
	})
	if err != nil {
		return nil, err
	}
	v := s.Proposer.StaleView()
	if k, ok := v.Key(res.ID); ok {
		return toKey(v, k), nil
	}
	return nil, metal.Errorf(metal.CodeNotFound, "the request was done before; the key that it added is gone").WithHint("bmc key list")
}

// validatePublicKey refuses what no sshd would accept; the hint is how to look
// at a key.
func validatePublicKey(field, line string) error {
	if len(line) > maxPublicKey {
		return metal.Invalid(field, "is longer than %d bytes", maxPublicKey)
	}
	if _, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(line)); err != nil || len(rest) > 0 {
		return metal.Invalid(field, "is not one SSH public key, e.g. ssh-ed25519 AAAA... you@host").WithHint("ssh-keygen -lf FILE.pub")
	}
	return nil
}

func (s *keys) ListKeys(ctx context.Context, req *bmcv1.ListKeysRequest) (*bmcv1.ListKeysResponse, error) {
	v, err := s.read(ctx, req)
	if err != nil {
		return nil, err
	}
	resp := &bmcv1.ListKeysResponse{}
	for k := range v.Keys(caller(ctx).scope()) {
		resp.Keys = append(resp.Keys, toKey(v, k))
	}
	return resp, nil
}

func (s *keys) RemoveKey(ctx context.Context, req *bmcv1.RemoveKeyRequest) (*bmcv1.RemoveKeyResponse, error) {
	_, err := s.change(ctx, req, func(v *state.View) (*logpb.Command, error) {
		if done, err := s.replayed(ctx, v, req); done != nil || err != nil {
			return nil, err
		}
		project, err := s.projectOf(ctx, v, "")
		if err != nil {
			return nil, err
		}
		k, err := v.ResolveKey(project.ID, req.GetRef())
		if err != nil {
			return nil, err
		}
		return &logpb.Command{Command: &logpb.Command_RemoveKey{RemoveKey: &logpb.RemoveKey{Project: k.Project, KeyId: k.ID}}}, nil
	})
	if err != nil {
		return nil, err
	}
	return &bmcv1.RemoveKeyResponse{}, nil
}

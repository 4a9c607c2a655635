package fsm

import (
	"slices"

	"bmc/fsm/logpb"
	"bmc/fsm/state"
	"bmc/metal"
)

// Limits of what a project keeps.
const (
	maxSigningKeys = 32
	maxManifest    = 8 << 20 // bytes; a 2 TB disk in 4 MiB chunks does not come near
	maxKeys        = 1000
)

func (a *applier) createImage(m *logpb.CreateImage, r *Result) *metal.Error {
	i := m.GetImage().Metal()
	a.target = i.Name
	if err := metal.ValidateName("name", i.Name); err != nil {
		return failure(err)
	}
	if err := plain("image id", i.ID); err != nil {
		return err
	}
	if len(i.Manifest) > maxManifest {
		return metal.Invalid("manifest", "is longer than %d bytes", maxManifest)
	}
	p, ok := a.Project(i.Project)
	if !ok {
		return metal.Errorf(metal.CodeNotFound, "there is no project %q", i.Project)
	}
	if len(p.SigningKeys) == 0 {
		return metal.Errorf(metal.CodeSignature, "project %s trusts no signing key", p.Name).WithHint("bmc image push --help")
	}
	if old, ok := a.Image(i.Project, i.ID); ok {
		// The digest covers the manifest, so this is the same image again.
		r.ID, r.Value = old.ID, old
		return nil
	}
	i.Created = a.now
	a.PutImage(i)
	a.note("image.created", i.Name, i.Project, "image "+i.Name+" was registered")
	r.ID, r.Value = i.ID, i
	return nil
}

// deleteImage refuses while a deployment needs the manifest. What runs already
// does not need it.
func (a *applier) deleteImage(m *logpb.DeleteImage, r *Result) *metal.Error {
	i, ok := a.Image(m.GetProject(), m.GetImageId())
	if !ok {
		return metal.Errorf(metal.CodeNotFound, "there is no image %q", m.GetImageId()).WithHint("bmc image list")
	}
	a.target = i.Name
	for s := range a.Servers(state.ServerFilter{Project: i.Project}) {
		if s.Rental.ImageID == i.ID && (s.State == metal.StateDeploying || s.State == metal.StateFailed && !s.Rental.Released) {
			return metal.Errorf(metal.CodeInUse, "image %s is needed by %s, which is %s", i.Name, s.Rental.Name, s.State).
				WithHint("bmc wait %s --for state=running", s.Rental.Name)
		}
	}
	a.DeleteImage(i.Project, i.ID)
	a.note("image.deleted", i.Name, i.Project, "image "+i.Name+" was deleted")
	r.ID = i.ID
	return nil
}

func (a *applier) addSigningKey(m *logpb.AddSigningKey, r *Result) *metal.Error {
	p, ok := a.Project(m.GetProject())
	if !ok {
		return metal.Errorf(metal.CodeNotFound, "there is no project %q", m.GetProject())
	}
	a.target, r.ID, r.Value = p.Name, p.ID, p
	switch k := m.GetPublicKey(); {
	case k == "" || len(k) > 1024:
		return metal.Invalid("public_key", "is not a minisign public key")
	case slices.Contains(p.SigningKeys, k):
		return nil
	case len(p.SigningKeys) >= maxSigningKeys:
		return metal.Invalid("public_key", "project %s has %d keys, no more are kept", p.Name, maxSigningKeys)
	}
	changed := *p
	changed.SigningKeys = append(slices.Clone(p.SigningKeys), m.GetPublicKey())
	a.PutProject(&changed)
	a.note("project.signing-key", p.Name, p.ID, "a signing key was added")
	r.Value = &changed
	return nil
}

func (a *applier) addKey(m *logpb.AddKey, r *Result) *metal.Error {
	k := m.GetKey().Metal()
	a.target = k.Name
	if err := metal.ValidateName("name", k.Name); err != nil {
		return failure(err)
	}
	if err := a.freshID("key", k.ID, func(id string) bool { _, ok := a.Key(id); return ok }); err != nil {
		return err
	}
	if _, ok := a.Project(k.Project); !ok {
		return metal.Errorf(metal.CodeNotFound, "there is no project %q", k.Project)
	}
	var err error
	if k.PublicKey, k.Fingerprint, err = metal.ParseSSHKey("public_key", k.PublicKey); err != nil {
		return failure(err)
	}
	if _, taken := a.KeyByName(k.Project, k.Name); taken {
		return metal.Errorf(metal.CodeNameTaken, "there is a key %s already", k.Name).WithHint("bmc key list")
	}
	if other, taken := a.KeyByFingerprint(k.Project, k.Fingerprint); taken {
		return metal.Errorf(metal.CodeNameTaken, "this key is there already, as %s", other.Name).WithHint("bmc key list")
	}
	if a.CountKeys(k.Project) >= maxKeys {
		return metal.Invalid("key", "the project has %d keys, no more are kept", maxKeys)
	}
	k.Created = a.now
	a.PutKey(k)
	a.note("key.added", k.Name, k.Project, "key "+k.Name+" was added")
	r.ID, r.Value = k.ID, k
	return nil
}

func (a *applier) removeKey(m *logpb.RemoveKey, r *Result) *metal.Error {
	k, ok := a.Key(m.GetKeyId())
	if !ok || k.Project != m.GetProject() {
		return metal.Errorf(metal.CodeNotFound, "there is no key %q", m.GetKeyId()).WithHint("bmc key list")
	}
	a.target = k.Name
	a.DeleteKey(k.ID)
	a.note("key.removed", k.Name, k.Project, "key "+k.Name+" was removed")
	r.ID = k.ID
	return nil
}

package unlock

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"

	"github.com/claviger/claviger/broker/agent"
)

// Rekey moves a volume to the next version of its key. At every moment the disk
// opens with a key that the broker gives for what the disk's tokens say, so the
// power may fail anywhere; calling Rekey again goes on:
//
//  1. the present key, proven against the header
//  2. the next version, which the broker makes durable before it answers
//  3. a keyslot with it
//  4. a token for that keyslot: from here on the disk asks for the next version first
//  5. the new key once more from the broker, and the disk tried with it: both have it
//  6. the old keyslot and its token removed
func (u *Unlocker) Rekey(ctx context.Context, v Volume) error {
	if err := u.rekey(ctx, v); err != nil {
		return fmt.Errorf("%s: change key: %w", v.Name, err)
	}
	return nil
}

func (u *Unlocker) rekey(ctx context.Context, v Volume) error {
	d, err := u.inspect(ctx, v)
	if err != nil {
		return err
	}
	defer func() { d.close() }()
	if d.header == nil {
		return ErrNotEnrolled
	}
	newest, err := u.fetch(ctx, v.Resource, "")
	if err != nil {
		return err
	}
	defer newest.Wipe()
	token, old, err := u.proven(ctx, v, d, newest)
	if err != nil {
		return err
	}
	defer old.Wipe()

	next, err := u.next(ctx, v, d, old)
	if err != nil {
		return err
	}
	defer next.Wipe()
	if next.Version != old.Version {
		if d, err = u.addNext(ctx, v, d, old, next); err != nil {
			return err
		}
		if token, err = u.confirm(ctx, v, d, next); err != nil {
			return err
		}
	}
	return u.retire(ctx, d, token, next)
}

// next is the version to move to: the one that a cut-off Rekey had moved to
// already, if its old keyslot is still there, else one that the broker makes.
func (u *Unlocker) next(ctx context.Context, v Volume, d *disk, old agent.Secret) (agent.Secret, error) {
	if len(d.header.Ours()) > 1 {
		u.logf("finishing a change of key that was cut off")
		return u.fetch(ctx, v.Resource, old.Version)
	}
	next, err := u.ask(ctx, v.Resource, "next_of", old.Version)
	if err != nil {
		return agent.Secret{}, err
	}
	if next.Version == old.Version || subtle.ConstantTimeCompare(next.Value, old.Value) == 1 {
		next.Wipe()
		return agent.Secret{}, fmt.Errorf("the broker gave version %s again: the catalog entry needs rekey: true", old.Version)
	}
	return next, u.did("next version made")
}

// addNext makes a keyslot and a token for the next key, unless a cut-off Rekey had made the keyslot.
func (u *Unlocker) addNext(ctx context.Context, v Volume, d *disk, old, next agent.Secret) (*disk, error) {
	if u.slotOf(ctx, d, next.Value) == "" {
		if err := u.Cryptsetup.addKey(ctx, d.copy, d.device, old.Value, next.Value); err != nil {
			return d, err
		}
		if err := u.did("keyslot added"); err != nil {
			return d, err
		}
	}
	plain := v
	plain.Recovery = "" // it has that already
	return u.adopt(ctx, plain, d, next)
}

// confirm has the broker give the new key once more, as it will at the next
// boot, and holds it against header and keyslot.
func (u *Unlocker) confirm(ctx context.Context, v Volume, d *disk, next agent.Secret) (token string, err error) {
	again, err := u.fetch(ctx, v.Resource, next.Version)
	if err != nil {
		return "", fmt.Errorf("confirm: %w", err)
	}
	defer again.Wipe()
	if subtle.ConstantTimeCompare(again.Value, next.Value) != 1 {
		return "", errors.New("confirm: the broker gave another key for the same version: the old one stays")
	}
	token, key, err := u.proven(ctx, v, d, again)
	if err != nil {
		return "", fmt.Errorf("confirm: %w", err)
	}
	defer key.Wipe()
	if !u.Cryptsetup.opens(ctx, d.copy, d.device, d.header.Meta.Tokens[token].Keyslots[0], again.Value) {
		return "", errors.New("confirm: the disk does not open with the new key: the old one stays")
	}
	return token, u.did("confirmed")
}

// retire removes every keyslot and token of ours but the one given.
func (u *Unlocker) retire(ctx context.Context, d *disk, keep string, key agent.Secret) error {
	keepSlot := d.header.Meta.Tokens[keep].Keyslots[0]
	for id, t := range d.header.Meta.Tokens {
		if id == keep {
			continue
		}
		for _, slot := range t.Keyslots {
			if _, there := d.header.Meta.Keyslots[slot]; !there || slot == keepSlot {
				continue
			}
			if err := u.Cryptsetup.killSlot(ctx, d.device, slot, key.Value); err != nil {
				return err
			}
			if err := u.did("old keyslot removed"); err != nil {
				return err
			}
		}
		if err := u.Cryptsetup.removeToken(ctx, d.device, id); err != nil {
			return err
		}
		if err := u.did("old token removed"); err != nil {
			return err
		}
	}
	u.logf("the key is now version %s", key.Version)
	return nil
}

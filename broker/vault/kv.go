package vault

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/claviger/claviger/broker"
)

const (
	defaultField = "value"
	wholeSecret  = "*"
	// encodingPrefix marks values that this package made: Vault's JSON holds no
	// raw bytes. Only entries that say so are decoded: others have values that begin with the same word.
	encodingPrefix = "base64:"
)

// errAbsent: there is no such secret, and Vault does not say that there was one.
var errAbsent = fmt.Errorf("%w", broker.ErrNoSecret)

type kvSecret struct {
	data    map[string]any
	version int
	created string // when the version was made
}

func (s *Source) kvMount(e broker.CatalogEntry) string { return cmp.Or(e.Mount, s.cfg.Mount) }

func (s *Source) fetchKV(ctx context.Context, e broker.CatalogEntry, what broker.Granted) (broker.Secret, error) {
	mount := s.kvMount(e)
	absent := what.Absent
	if absent == nil {
		absent = func(context.Context, int) error { return nil }
	}
	ask, err := broker.ParseVersionInput(e, what.Input)
	if err != nil {
		return broker.Secret{}, fmt.Errorf("vault: %s/%s: %w", mount, e.Key, err)
	}
	if ask.Version != 0 {
		got, err := s.readKV(ctx, mount, e.Key, ask.Version)
		if errors.Is(err, errAbsent) {
			err = errors.Join(absent(ctx, ask.Version), err)
		}
		if err != nil {
			return broker.Secret{}, err
		}
		return field(got, e)
	}
	gone := error(nil) // as absent said at the first look: another machine may have made it meanwhile
	for range 4 {
		got, err := s.readKV(ctx, mount, e.Key, e.PinVersion)
		switch {
		case err == nil && got.version == ask.NextOf:
			if err := absent(ctx, got.version+1); err != nil {
				if gone != nil || !lookAgain(ctx, err) {
					return broker.Secret{}, err
				}
				gone = err
				continue
			}
			// Check-and-set again: whoever loses takes what the other made.
			value, version, err := s.writeRandom(ctx, e, got.data, got.version)
			if isConflict(err) {
				continue
			}
			return broker.Secret{Value: value, Version: strconv.Itoa(version)}, err
		case err == nil:
			return field(got, e)
		// A deleted version is not "absent": making a new key over a deleted
		// disk key would lose the disk.
		case !errors.Is(err, errAbsent) || e.CreateBytes == 0:
			return broker.Secret{}, err
		}
		if err := absent(ctx, 1); err != nil {
			if gone != nil || !lookAgain(ctx, err) {
				return broker.Secret{}, err
			}
			gone = err
			continue
		}
		// An engine that is another than it was must not be written to.
		if err := s.checkKV2(ctx, mount); err != nil {
			return broker.Secret{}, err
		}
		// Check-and-set 0: of two machines at their first boot one writes, and both get what it wrote.
		value, version, err := s.writeRandom(ctx, e, nil, 0)
		switch {
		case err == nil && e.Field != wholeSecret:
			return broker.Secret{Value: value, Version: strconv.Itoa(version)}, nil
		case err != nil && !isConflict(err):
			return broker.Secret{}, err
		}
		clear(value)
	}
	return broker.Secret{}, fmt.Errorf("vault: %s/%s: %w", mount, e.Key, errBusy)
}

// lookAgain waits a moment after a key that was there seems to be gone: for whoever makes it just now, and for a standby that has not heard of it yet.
func lookAgain(ctx context.Context, err error) bool {
	if !errors.Is(err, broker.ErrVanished) {
		return false
	}
	select {
	case <-time.After(200 * time.Millisecond):
		return true
	case <-ctx.Done():
		return false
	}
}

// readKV reads a version, or the current one for 0.
func (s *Source) readKV(ctx context.Context, mount, key string, version int) (kvSecret, error) {
	r := read(mount, "data/"+key)
	if version > 0 {
		r.query = url.Values{"version": {strconv.Itoa(version)}}
	}
	got, err := s.call(ctx, r)
	if err != nil {
		return kvSecret{}, err
	}
	if got == nil {
		// A KV v1 engine says so of every secret; one made there would have no versions.
		if err := s.checkKV2Once(ctx, mount); err != nil {
			return kvSecret{}, err
		}
		if version > 0 {
			return kvSecret{}, fmt.Errorf("vault: %s/%s: no version %d: %w", mount, key, version, errAbsent)
		}
		return kvSecret{}, fmt.Errorf("vault: %s/%s: %w", mount, key, errAbsent)
	}
	meta, ok := got.Data["metadata"].(map[string]any)
	if !ok {
		return kvSecret{}, fmt.Errorf("vault: mount %q is not a KV v2 engine: %s/data/%s has no metadata", mount, mount, key)
	}
	out := kvSecret{version: integer(meta["version"])}
	out.created, _ = meta["created_time"].(string)
	if out.data, ok = got.Data["data"].(map[string]any); ok {
		return out, nil
	}
	return kvSecret{}, fmt.Errorf("vault: %s/%s: version %d is %s: %w", mount, key, out.version, cmp.Or(ended(meta), "deleted"), broker.ErrNoSecret)
}

// ended says how a version ended, from its metadata; "" while it has not.
func ended(meta map[string]any) string {
	if d, _ := meta["destroyed"].(bool); d {
		return "destroyed"
	}
	text, _ := meta["deletion_time"].(string)
	if at, err := time.Parse(time.RFC3339, text); err == nil && !at.After(time.Now()) {
		return "deleted" // a time to come is a lifetime, set by delete_version_after
	}
	return ""
}

// checkKV2Once asks Vault what the mount is, unless it was KV v2 before.
func (s *Source) checkKV2Once(ctx context.Context, mount string) error {
	if _, ok := s.kv2.Load(mount); ok {
		return nil
	}
	return s.checkKV2(ctx, mount)
}

// checkKV2 asks Vault what the mount is.
func (s *Source) checkKV2(ctx context.Context, mount string) error {
	s.kv2.Delete(mount)
	got, err := s.call(ctx, read("sys", "internal/ui/mounts/"+mount))
	switch {
	case status(err) == http.StatusForbidden || err == nil && got == nil:
		return fmt.Errorf("vault: mount %q does not exist, or the policies allow nothing in it", mount)
	case err != nil:
		return fmt.Errorf("vault: is mount %q a KV v2 engine: %w", mount, err)
	}
	options, _ := got.Data["options"].(map[string]any)
	if got.Data["type"] != "kv" || options["version"] != "2" {
		return fmt.Errorf("vault: mount %q is not a KV v2 engine (type %v, version %v)", mount, got.Data["type"], cmp.Or(options["version"], "1"))
	}
	s.kv2.Store(mount, true)
	return nil
}

// writeRandom sets the entry's field to a new random value, beside the other
// fields, if the current version still is the one given.
func (s *Source) writeRandom(ctx context.Context, e broker.CatalogEntry, others map[string]any, version int) ([]byte, int, error) {
	value := make([]byte, e.CreateBytes)
	if _, err := rand.Read(value); err != nil {
		return nil, 0, fmt.Errorf("read random: %w", err)
	}
	data := maps.Clone(others)
	if data == nil {
		data = map[string]any{}
	}
	data[fieldToMake(e)] = encodingPrefix + base64.StdEncoding.EncodeToString(value)
	mount := s.kvMount(e)
	put, err := s.call(ctx, write(mount, "data/"+e.Key, map[string]any{"data": data, "options": map[string]any{"cas": version}}))
	if err == nil && (put == nil || integer(put.Data["version"]) != version+1) {
		err = fmt.Errorf("vault: %s/%s: the answer to the write is not that of a KV v2 engine", mount, e.Key)
	}
	if err != nil {
		clear(value)
		return nil, 0, err
	}
	return value, version + 1, nil
}

func fieldToMake(e broker.CatalogEntry) string {
	if e.Field == wholeSecret {
		return defaultField
	}
	return cmp.Or(e.Field, defaultField)
}

func field(got kvSecret, e broker.CatalogEntry) (broker.Secret, error) {
	s := broker.Secret{Version: strconv.Itoa(got.version), Edition: got.created}
	if e.Field == wholeSecret {
		var err error
		s.Value, err = canonical(got.data)
		s.ContentType = "application/json"
		return s, err
	}
	name := cmp.Or(e.Field, defaultField)
	text, err := plain(got.data[name])
	if err != nil {
		return broker.Secret{}, fmt.Errorf("vault: %s: field %q %w: %w", e.Key, name, err, broker.ErrNoSecret)
	}
	b64, marked := strings.CutPrefix(text, encodingPrefix)
	if !marked && e.Options["encoding"] == "" || !e.Base64() {
		s.Value = []byte(text)
		return s, nil
	}
	value, err := base64.StdEncoding.DecodeString(b64)
	if err != nil {
		return broker.Secret{}, fmt.Errorf("vault: %s: field %q is not base64", e.Key, name)
	}
	s.Value = value
	return s, nil
}

// plain is a field as Vault's own command prints it.
func plain(v any) (string, error) {
	switch v := v.(type) {
	case nil:
		return "", errors.New("is not there, or null")
	case string:
		return v, nil
	case json.Number:
		return v.String(), nil
	case bool:
		return strconv.FormatBool(v), nil
	}
	return "", errors.New(`is an object or a list: field: "*" gives the whole secret as JSON`)
}

// canonical is JSON with sorted names and without white space: one text for one secret.
func canonical(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode secret: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// kvVersion reads the metadata: no secret travels.
func (s *Source) kvVersion(ctx context.Context, e broker.CatalogEntry) (version, edition string, err error) {
	mount := s.kvMount(e)
	got, err := s.call(ctx, read(mount, "metadata/"+e.Key))
	if err != nil {
		return "", "", err
	}
	if got == nil {
		if err := s.checkKV2Once(ctx, mount); err != nil {
			return "", "", err
		}
		return "", "", fmt.Errorf("vault: %s/%s: %w", mount, e.Key, broker.ErrNoSecret)
	}
	n := cmp.Or(e.PinVersion, integer(got.Data["current_version"]))
	versions, _ := got.Data["versions"].(map[string]any)
	meta, ok := versions[strconv.Itoa(n)].(map[string]any)
	switch {
	case !ok:
		return "", "", fmt.Errorf("vault: %s/%s: no version %d: %w", mount, e.Key, n, broker.ErrNoSecret)
	case ended(meta) != "":
		return "", "", fmt.Errorf("vault: %s/%s: version %d is %s: %w", mount, e.Key, n, ended(meta), broker.ErrNoSecret)
	}
	edition, _ = meta["created_time"].(string)
	return strconv.Itoa(n), edition, nil
}

// rotateKV puts a new random value in place of the current one. Of two
// operators at the same time one gets an error: rotated once is enough.
func (s *Source) rotateKV(ctx context.Context, e broker.CatalogEntry) (string, error) {
	mount := s.kvMount(e)
	now, err := s.readKV(ctx, mount, e.Key, 0)
	if err != nil {
		return "", err
	}
	value, version, err := s.writeRandom(ctx, e, now.data, now.version)
	if isConflict(err) {
		return "", fmt.Errorf("vault: %s/%s: somebody else has just changed it: %w", mount, e.Key, err)
	}
	clear(value)
	if err != nil {
		return "", err
	}
	return strconv.Itoa(version), nil
}

// fetchWrapped gives out a token that reads the secret once: for ttl, or what the entry says, and no longer than limit, if that is not 0.
func (s *Source) fetchWrapped(ctx context.Context, e broker.CatalogEntry, ttl, limit time.Duration) (broker.Secret, error) {
	// Vault would wrap "there is none" as well.
	version, _, err := s.kvVersion(ctx, e)
	if err != nil {
		return broker.Secret{}, err
	}
	if text := e.Options["wrap_ttl"]; text != "" {
		if ttl, err = time.ParseDuration(text); err != nil || ttl < time.Second {
			return broker.Secret{}, fmt.Errorf("vault: %s: options: wrap_ttl: %q is not a duration of 1s or more", e.Key, text)
		}
	}
	if limit > 0 {
		ttl = min(ttl, limit)
	}
	r := read(s.kvMount(e), "data/"+e.Key)
	r.query = url.Values{"version": {version}}
	r.wrapTTL = strconv.Itoa(int(max(ttl, time.Second).Seconds()))
	got, err := s.call(ctx, r)
	if err != nil {
		return broker.Secret{}, err
	}
	if got == nil || got.WrapInfo == nil || got.WrapInfo.Token == "" {
		return broker.Secret{}, fmt.Errorf("vault: %s: the answer is not wrapped", e.Key)
	}
	return broker.Secret{
		Value: []byte(got.WrapInfo.Token), Version: version,
		Expires: got.WrapInfo.CreationTime.Add(time.Duration(got.WrapInfo.TTL) * time.Second),
	}, nil
}

// integer reads a number of Vault's JSON; 0 where there is none.
func integer(v any) int {
	n, _ := v.(json.Number)
	i, _ := strconv.Atoi(n.String())
	return i
}

// isConflict recognises Vault's answer to a failed check-and-set: 400 with this text.
func isConflict(err error) bool {
	return status(err) == http.StatusBadRequest && says(err, "check-and-set")
}

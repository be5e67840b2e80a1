package results

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/claviger/claviger/broker/strictjson"
)

// Bounds on what a token may hold. Those of the four dialects are below 12 KiB and 8 levels.
const (
	maxDepth  = 24
	maxValues = 4096 // members and items, at all levels
)

// object is a JSON object as decode returns it: numbers are json.Number where a
// policy can read them exactly, and strings elsewhere.
type object map[string]any

func (o object) text(name string) string { s, _ := o[name].(string); return s }

// at returns the object of that name, or an empty one.
func (o object) at(name string) object { m, _ := o[name].(map[string]any); return m }

// is reports whether the member is there, and that boolean.
func (o object) is(name string, want bool) bool { b, ok := o[name].(bool); return ok && b == want }

// strings returns a string, or the strings of a list.
func (o object) strings(name string) []string {
	switch v := o[name].(type) {
	case string:
		return []string{v}
	case []any:
		out := []string{}
		for _, x := range v {
			if s, ok := x.(string); ok {
				out = append(out, s)
			}
		}
		return out
	}
	return nil
}

// time returns a NumericDate (RFC 7519 §2), whole seconds since 1970; ok is false
// where there is none. One that is no date in the next centuries is an error.
func (o object) time(name string) (seconds int64, ok bool, err error) {
	v, ok := o[name]
	if !ok {
		return 0, false, nil
	}
	n, _ := v.(json.Number)
	f, err := n.Float64()
	if err != nil || f < 0 || f > 1e11 {
		return 0, false, fmt.Errorf("%s: is no date", name)
	}
	return int64(f), true, nil
}

// token is a compact JWS (RFC 7515 §7.1), of which nothing is believed yet.
type token struct {
	header    header
	claims    object
	signed    []byte // what the signature is over: header and payload, encoded
	signature []byte
}

// header has the members that count. Those that name a place to fetch a key
// from (jku, x5u) are not among them.
type header struct {
	Algorithm string          `json:"alg"`
	KeyID     *string         `json:"kid"`
	Type      string          `json:"typ"`
	Critical  json.RawMessage `json:"crit"`
	Chain     []string        `json:"x5c"`
	// Key is how Confidential Containers sends the chain: inside a JWK.
	Key *struct {
		Chain []string `json:"x5c"`
	} `json:"jwk"`
	key json.RawMessage // jwk, as it came
}

// parse takes a token apart. There is one spelling of it: no white space, no
// padding, no bits that an encoder would not have set, and no member twice.
func parse(b []byte) (*token, error) {
	parts := bytes.Split(b, []byte("."))
	if len(parts) != 3 {
		return nil, fmt.Errorf("%d parts between dots: a compact JWS has 3", len(parts))
	}
	var decoded [3][]byte
	for i, name := range []string{"header", "payload", "signature"} {
		var err error
		if decoded[i], err = strictBase64(parts[i]); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	t := &token{signed: b[:len(b)-len(parts[2])-1], signature: decoded[2]}
	head, err := decode(decoded[0])
	if err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	if err := strictjson.Unmarshal(decoded[0], &t.header); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	// b64 (RFC 7797) would make the payload something else than what is decoded here.
	if _, ok := head["b64"]; ok {
		return nil, errors.New("header: b64 is not accepted")
	}
	if jwk, ok := head["jwk"]; ok {
		if t.header.key, err = json.Marshal(jwk); err != nil {
			return nil, fmt.Errorf("header: jwk: %w", err)
		}
	}
	if t.claims, err = decode(decoded[1]); err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	return t, nil
}

// strictBase64 decodes base64url without padding. The library skips line ends.
func strictBase64(b []byte) ([]byte, error) {
	if bytes.ContainsAny(b, "\r\n") {
		return nil, errors.New("has a line end")
	}
	return base64.RawURLEncoding.Strict().AppendDecode(nil, b)
}

// decode reads one JSON object that has one reading, within the bounds.
func decode(b []byte) (object, error) {
	doc, err := strictjson.Numbers(b)
	if err != nil {
		return nil, err
	}
	values := 0
	v, err := bounded(doc, maxDepth, &values)
	if err != nil {
		return nil, err
	}
	o, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("is not a JSON object")
	}
	return o, nil
}

// bounded makes each number what exact makes of it.
func bounded(v any, depth int, values *int) (_ any, err error) {
	if *values++; depth == 0 || *values > maxValues {
		return nil, fmt.Errorf("JSON of more than %d levels or %d values", maxDepth, maxValues)
	}
	switch v := v.(type) {
	case json.Number:
		return exact(v), nil
	case []any:
		for i, item := range v {
			if v[i], err = bounded(item, depth-1, values); err != nil {
				return nil, err
			}
		}
	case map[string]any:
		for name, member := range v {
			if v[name], err = bounded(member, depth-1, values); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}

// exact keeps a number that every reader of JSON takes for the same one, and
// makes a string of others, as for all claims.
func exact(n json.Number) any {
	f, err := n.Float64()
	if err != nil {
		return n.String()
	}
	if math.Abs(f) >= 1<<53 {
		return n.String()
	}
	if i, err := strconv.ParseInt(n.String(), 10, 64); err == nil {
		return json.Number(strconv.FormatInt(i, 10))
	}
	return n
}

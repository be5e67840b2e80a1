package token

import (
	"encoding/json"
	"net/http"
	"slices"

	"github.com/lestrrat-go/jwx/v3/jwk"
)

// Paths below the issuer.
const (
	discoveryPath = "/.well-known/openid-configuration"
	keysPath      = "/.well-known/jwks.json"
)

// discovery is the part of OpenID Connect Discovery 1.0 §3 that a verifier of
// tokens needs. There is no authorization endpoint: nobody logs in here.
type discovery struct {
	Issuer        string   `json:"issuer"`
	JWKS          string   `json:"jwks_uri"`
	ResponseTypes []string `json:"response_types_supported"`
	SubjectTypes  []string `json:"subject_types_supported"`
	Algorithms    []string `json:"id_token_signing_alg_values_supported"`
	Claims        []string `json:"claims_supported"`
}

// ServeHTTP serves the discovery document and the key set below the path of
// the issuer, and nothing else. Both are public. Serve it over TLS: who can
// alter the key set can make tokens.
func (s *Source) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.EscapedPath()
	if path != s.path+discoveryPath && path != s.path+keysPath {
		http.NotFound(w, r)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	_, published := choose(s.generations(r.Context()), s.cfg.Now(), s.cfg)
	var doc any = s.discovery(published)
	if path == s.path+keysPath {
		set := struct {
			Keys []jwk.Key `json:"keys"`
		}{}
		for _, g := range published {
			set.Keys = append(set.Keys, g.public)
		}
		doc = set
	}
	b, err := json.Marshal(doc)
	if err != nil {
		s.log.ErrorContext(r.Context(), "cannot encode token discovery", "error", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "public, max-age=300")
	h.Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(b) // the server drops the body of an answer to HEAD
}

func (s *Source) discovery(published []generation) discovery {
	var algs []string
	for _, g := range published {
		if !slices.Contains(algs, g.alg) {
			algs = append(algs, g.alg)
		}
	}
	return discovery{
		Issuer: s.cfg.Issuer, JWKS: s.cfg.Issuer + keysPath,
		ResponseTypes: []string{"id_token"}, SubjectTypes: []string{"public"}, Algorithms: algs,
		Claims: []string{"iss", "sub", "aud", "iat", "exp", "jti", "cnf", "eat_profile", "submods", "claviger"},
	}
}

package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/internal/cli"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// completeTime is how long a shell waits for values from a broker.
const completeTime = 3 * time.Second

// values lists what an argument may be; args are those before it, prefix its beginning.
type values func(ctx context.Context, c pb.AdminClient, args []string, prefix string) ([]string, error)

// completions has the shell complete what a broker knows.
func (a *adminFlags) completions(root *cobra.Command) {
	kinds := these(strings.Fields("chip measurement workload tcb advisory policy session resource secret_version")...)
	find := func(path string) *cobra.Command {
		c, rest, err := root.Find(strings.Fields(path))
		if err != nil || len(rest) > 0 {
			panic("no command " + path) // a mistake in the tables below
		}
		return c
	}
	for path, lists := range map[string][]values{
		"catalog delete":   {patterns()},
		"catalog set":      {patterns()},
		"holders":          {watchedResources()},
		"notify":           {watchedResources()},
		"policy activate":  {digests},
		"reference delete": {setNames()},
		"reference set":    {setNames()},
		"reference uses":   {setNames()},
		"revoke":           {kinds, revocable()},
		"secret delete":    {secretKeys()},
		"secret list":      {secretKeys()},
		"secret put":       {secretKeys()},
		"unrevoke":         {kinds, revoked()},
	} {
		find(path).ValidArgsFunction = func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(args) >= len(lists) {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return a.ask(cmd, lists[len(args)], args, prefix)
		}
	}
	states := these("canary", "active", "retiring", "retired")
	for _, f := range []struct {
		path, flag string
		list       values
	}{
		{"", "output", these("table", "json")},
		{"catalog set", "policy", policies},
		{"catalog set", "kind", these(strings.Fields("kv database database_static pki transit_decrypt transit_datakey transit_export wrapped login ear")...)},
		{"catalog set", "priority", these("boot")},
		{"reference set", "state", states},
		{"reference set", "policy", policies},
		{"reference add", "policy", policies},
		{"reference add", "state", states},
	} {
		err := find(f.path).RegisterFlagCompletionFunc(f.flag, func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			return a.ask(cmd, f.list, args, prefix)
		})
		if err != nil {
			panic(err)
		}
	}
}

func (a *adminFlags) ask(cmd *cobra.Command, list values, args []string, prefix string) (out []string, _ cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completeTime)
	defer cancel()
	var found []string
	err := a.call(ctx, func(ctx context.Context, c pb.AdminClient) (err error) {
		found, err = list(ctx, c, args, prefix)
		return err
	})
	if err != nil {
		if found, err = list(ctx, nil, args, prefix); err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
	}
	for _, v := range found {
		// What would not survive the shell or the terminal is not offered.
		if v == cli.Text(v) && !strings.ContainsAny(v, " \t\n") && strings.HasPrefix(v, prefix) {
			out = append(out, v)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), cobra.ShellCompDirectiveNoFileComp
}

// these are values that are known without a broker.
func these(list ...string) values {
	return func(context.Context, pb.AdminClient, []string, string) ([]string, error) { return list, nil }
}

// listed are values that only a broker knows.
func listed[P page](ask func(ctx context.Context, c pb.AdminClient, prefix, token string) (P, error), each func(P, []string) []string) values {
	return func(ctx context.Context, c pb.AdminClient, args []string, prefix string) ([]string, error) {
		if c == nil {
			return nil, nil
		}
		r, err := whole(func(token string) (P, error) { return ask(ctx, c, prefix, token) })
		if err != nil {
			return nil, err
		}
		return each(r, args), nil
	}
}

func setNames() values {
	return listed(func(ctx context.Context, c pb.AdminClient, _, token string) (*pb.ListReferenceSetsResponse, error) {
		return c.ListReferenceSets(ctx, &pb.ListReferenceSetsRequest{PageToken: token})
	}, func(r *pb.ListReferenceSetsResponse, _ []string) (out []string) {
		for _, s := range r.GetSets() {
			out = append(out, s.GetName())
		}
		return out
	})
}

func patterns() values {
	return listed(func(ctx context.Context, c pb.AdminClient, _, token string) (*pb.ListCatalogResponse, error) {
		return c.ListCatalog(ctx, &pb.ListCatalogRequest{PageToken: token})
	}, func(r *pb.ListCatalogResponse, _ []string) (out []string) {
		for _, e := range r.GetEntries() {
			out = append(out, e.GetPattern())
		}
		return out
	})
}

func secretKeys() values {
	return listed(func(ctx context.Context, c pb.AdminClient, prefix, token string) (*pb.ListSecretsResponse, error) {
		return c.ListSecrets(ctx, &pb.ListSecretsRequest{Prefix: prefix, PageToken: token})
	}, func(r *pb.ListSecretsResponse, _ []string) (out []string) {
		for _, s := range r.GetSecrets() {
			out = append(out, s.GetKey())
		}
		return out
	})
}

// revoked are the values of the kind that the first argument names.
func revoked() values {
	return listed(func(ctx context.Context, c pb.AdminClient, _, token string) (*pb.ListRevocationsResponse, error) {
		return c.ListRevocations(ctx, &pb.ListRevocationsRequest{PageToken: token})
	}, func(r *pb.ListRevocationsResponse, args []string) (out []string) {
		for _, x := range r.GetRevocations() {
			if x.GetKind() == args[0] {
				out = append(out, x.GetValue())
			}
		}
		return out
	})
}

// revocable are the values of the kind that the first argument names, of the sessions that watch.
func revocable() values {
	sessions := listed(listSessions, func(r *pb.ListSessionsResponse, args []string) (out []string) {
		for _, s := range r.GetSessions() {
			switch args[0] {
			case "chip":
				out = append(out, s.GetChipId())
			case "session":
				out = append(out, s.GetId())
			case "resource", "secret_version": // the version is left to the operator: claviger holders
				for _, r := range s.GetResources() {
					if args[0] == "secret_version" {
						r += "@"
					}
					out = append(out, r)
				}
			case "measurement":
				for _, m := range s.GetMeasurements() {
					_, v, _ := strings.Cut(m, "=")
					out = append(out, v)
				}
			}
		}
		return out
	})
	return func(ctx context.Context, c pb.AdminClient, args []string, prefix string) ([]string, error) {
		if args[0] == "policy" {
			list, err := digests(ctx, c, args, prefix)
			return slices.DeleteFunc(list, func(d string) bool { return d == "newest" }), err
		}
		return sessions(ctx, c, args, prefix)
	}
}

func watchedResources() values {
	return listed(listSessions, func(r *pb.ListSessionsResponse, _ []string) (out []string) {
		for _, s := range r.GetSessions() {
			out = append(out, s.GetResources()...)
		}
		return out
	})
}

func listSessions(ctx context.Context, c pb.AdminClient, _, token string) (*pb.ListSessionsResponse, error) {
	return c.ListSessions(ctx, &pb.ListSessionsRequest{PageToken: token})
}

// digests are the bundles that can be activated.
func digests(ctx context.Context, c pb.AdminClient, _ []string, _ string) ([]string, error) {
	out := []string{"newest"}
	if c == nil {
		return out, nil
	}
	p, err := c.GetPolicy(ctx, &pb.GetPolicyRequest{})
	if err != nil {
		return nil, err
	}
	return append(append(out, p.GetDigest()), p.GetCandidates()...), nil
}

// policies are those of the bundle in force.
func policies(ctx context.Context, c pb.AdminClient, _ []string, _ string) (out []string, err error) {
	if c == nil {
		return nil, nil
	}
	p, err := c.GetPolicy(ctx, &pb.GetPolicyRequest{})
	for _, name := range p.GetPackages() {
		out = append(out, strings.TrimPrefix(name, "claviger.release."))
	}
	return out, err
}

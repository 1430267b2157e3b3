package api

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"berth.dev/berth/integ/lab"
)

// mirror finds a file-system mirror that has the AWS provider of the version that the
// configuration below asks for; "" when there is none.
func mirror() string {
	for _, pattern := range []string{
		"/opt/*", "/opt/*/*", "/usr/share/*", "/usr/local/share/*", "/usr/share/terraform/plugins", "/usr/local/share/terraform/plugins",
	} {
		found, err := filepath.Glob(filepath.Join(pattern, "registry.terraform.io/hashicorp/aws/5.100.0"))
		if err == nil && len(found) > 0 {
			return filepath.Clean(filepath.Join(found[0], "../../../.."))
		}
	}
	return ""
}

const terraformNetwork = `
terraform {
  required_providers {
    aws = { source = "hashicorp/aws", version = "5.100.0" }
  }
}
provider "aws" {
  region                      = "us-east-1"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true
  skip_region_validation      = true
  max_retries                 = 1
  endpoints {
    ec2 = "%[1]s"
    sts = "%[1]s"
  }
}
resource "aws_vpc" "shop" {
  cidr_block           = "10.60.0.0/16"
  enable_dns_hostnames = true
  tags                 = { Name = "shop" }
}
resource "aws_subnet" "shop" {
  vpc_id     = aws_vpc.shop.id
  cidr_block = "10.60.1.0/24"
  tags       = { Name = "shop" }
}
resource "aws_security_group" "web" {
  name        = "web"
  description = "of the shop"
  vpc_id      = aws_vpc.shop.id
  ingress {
    from_port   = 80
    to_port     = 80
    protocol    = "tcp"
    cidr_blocks = ["10.0.0.0/8"]
  }
  egress {
    from_port   = 0
    to_port     = 0
    protocol    = "-1"
    cidr_blocks = ["0.0.0.0/0"]
  }
}
resource "aws_security_group" "db" {
  name   = "db"
  vpc_id = aws_vpc.shop.id
}
resource "aws_vpc_security_group_ingress_rule" "db" {
  security_group_id            = aws_security_group.db.id
  referenced_security_group_id = aws_security_group.web.id
  from_port                    = 5432
  to_port                      = 5432
  ip_protocol                  = "tcp"
  description                  = "from the web"
}
resource "aws_vpc_security_group_egress_rule" "db" {
  security_group_id = aws_security_group.db.id
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
}
data "aws_vpc" "default" {
  default = true
}
data "aws_subnets" "default" {
  filter {
    name   = "vpc-id"
    values = [data.aws_vpc.default.id]
  }
}
`

// TestTerraformNetwork has Terraform make networks and security groups, find nothing to
// change afterwards, and remove them.
func TestTerraformNetwork(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("terraform")
	plugins := mirror()
	if err != nil || plugins == "" {
		t.Skip("terraform, or a mirror with the AWS provider 5.100.0, is not installed")
	}
	l := lab.Start(t)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"main.tf":  fmt.Sprintf(terraformNetwork, l.URL),
		"cli.tfrc": fmt.Sprintf("disable_checkpoint = true\nprovider_installation {\n  filesystem_mirror {\n    path = %q\n  }\n}\n", plugins),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	env := append(cliEnv(l, l.Key), "TF_CLI_CONFIG_FILE="+filepath.Join(dir, "cli.tfrc"), "CHECKPOINT_DISABLE=1", "TF_IN_AUTOMATION=1")
	for _, step := range [][]string{
		{"init", "-input=false", "-no-color"}, {"apply", "-auto-approve", "-input=false", "-no-color"},
		{"plan", "-detailed-exitcode", "-input=false", "-no-color"}, {"destroy", "-auto-approve", "-input=false", "-no-color"},
	} {
		limited, cancel := context.WithTimeout(ctx, 10*time.Minute) // the provider alone is 8 s of processor time
		cmd := exec.CommandContext(limited, program, append([]string{"-chdir=" + dir}, step...)...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		cancel()
		if err != nil {
			t.Fatalf("terraform %s: %v\n%s", step[0], err, out)
		}
	}
}

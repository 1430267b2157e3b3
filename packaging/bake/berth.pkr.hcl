# A machine image with berth-agent, for EC2:
#   packer init . && packer build -var region=eu-west-1 -var packages=../../dist/packages .
# The provisioner is a plain script, which makes an image by itself just as well.

packer {
  required_plugins {
    amazon = {
      source  = "github.com/hashicorp/amazon"
      version = ">= 1.3.0"
    }
  }
}

variable "region" {
  type = string
}

variable "packages" {
  type        = string
  description = "Folder with the packages that make packages has made"
  default     = "../../dist/packages"
}

variable "images" {
  type        = string
  description = "Images to pull and pin, separated by spaces"
  default     = ""
}

source "amazon-ebs" "debian" {
  region        = var.region
  instance_type = "t3.small"
  ami_name      = "berth-agent-{{timestamp}}"
  ssh_username  = "admin"
  imds_support  = "v2.0"

  metadata_options {
    http_tokens = "required"
  }

  source_ami_filter {
    owners      = ["136693071363"] # Debian
    most_recent = true
    filters = {
      name                = "debian-12-amd64-*"
      virtualization-type = "hvm"
    }
  }
}

build {
  sources = ["source.amazon-ebs.debian"]

  provisioner "file" {
    source      = "${var.packages}/"
    destination = "/tmp/berth"
  }

  provisioner "shell" {
    script           = "${path.root}/provision.sh"
    execute_command  = "sudo env {{ .Vars }} bash '{{ .Path }}'"
    environment_vars = ["BERTH_PACKAGES=/tmp/berth", "BERTH_IMAGES=${var.images}"]
  }
}

// A subscriber of /tracks. In a package: find_package rclcpp and sensor_msgs, ament_target_dependencies.
#include <cstdint>
#include <cstring>
#include <memory>

#include <rclcpp/rclcpp.hpp>
#include <sensor_msgs/msg/point_cloud2.hpp>

struct Track {
  float x, y, z;
  std::uint32_t id;
  float visibility, confidence;
  std::uint32_t flags, age;
  bool visible() const { return flags & 1u; }
};
static_assert(sizeof(Track) == 32, "a row of /tracks has 32 bytes");

int main(int argc, char ** argv)
{
  rclcpp::init(argc, argv);
  auto node = std::make_shared<rclcpp::Node>("print_tracks");
  auto subscription = node->create_subscription<sensor_msgs::msg::PointCloud2>(
    "tracks", 10, [&](const sensor_msgs::msg::PointCloud2 & msg) {
      for (std::size_t i = 0; i < msg.width; ++i) {
        Track track;
        std::memcpy(&track, msg.data.data() + i * msg.point_step, sizeof track);
        if (track.visible()) {
          RCLCPP_INFO(node->get_logger(), "%u: %.1f %.1f", track.id, track.x, track.y);
        }
      }
    });
  rclcpp::spin(node);
  rclcpp::shutdown();
  return 0;
}

module @jit__three attributes {mhlo.num_partitions = 1 : i32, mhlo.num_replicas = 4 : i32, neuron.mesh = {axes = [["tp", 4]], device_ids = array<i64>}, neuron.notes = ["combine_collectives: 3 all_reduce became one (288 B): local_programs.py"]} {
  func.func public @main(%arg0: tensor<4x8xf32> {neuron.global_type = tensor<4x8xf32>}, %arg1: tensor<8x8xf32> {neuron.dim_axes = [["tp"], []], neuron.global_type = tensor<32x8xf32>}, %arg2: tensor<8x8xf32> {neuron.dim_axes = [["tp"], []], neuron.global_type = tensor<32x8xf32>}) -> (tensor<4x8xf32> {neuron.global_type = tensor<4x8xf32>}, tensor<8xf32> {neuron.global_type = tensor<8xf32>}, tensor<4x8xf32> {neuron.global_type = tensor<4x8xf32>}) {
    %cst = stablehlo.constant dense<2.000000e+00> : tensor<f32>
    %cst_0 = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %0 = stablehlo.dot_general %arg0, %arg1, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
    %1 = stablehlo.dot_general %arg0, %arg2, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
    %2 = stablehlo.reduce(%0 init: %cst_0) applies stablehlo.add across dimensions = [0] : (tensor<4x8xf32>, tensor<f32>) -> tensor<8xf32>
    %3:3 = "stablehlo.all_reduce"(%0, %1, %2) <{replica_groups = dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>}> ({
    ^bb0(%arg3: tensor<f32>, %arg4: tensor<f32>):
      %9 = stablehlo.add %arg3, %arg4 : tensor<f32>
      stablehlo.return %9 : tensor<f32>
    }) : (tensor<4x8xf32>, tensor<4x8xf32>, tensor<8xf32>) -> (tensor<4x8xf32>, tensor<4x8xf32>, tensor<8xf32>)
    %4 = stablehlo.tanh %3#0 : tensor<4x8xf32>
    %5 = stablehlo.add %4, %3#1 : tensor<4x8xf32>
    %6 = stablehlo.broadcast_in_dim %cst, dims = [] : (tensor<f32>) -> tensor<4x8xf32>
    %7 = stablehlo.multiply %4, %6 : tensor<4x8xf32>
    %8 = "stablehlo.all_reduce"(%7) <{replica_groups = dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>}> ({
    ^bb0(%arg3: tensor<f32>, %arg4: tensor<f32>):
      %9 = stablehlo.add %arg3, %arg4 : tensor<f32>
      stablehlo.return %9 : tensor<f32>
    }) : (tensor<4x8xf32>) -> tensor<4x8xf32>
    return %5, %3#2, %8 : tensor<4x8xf32>, tensor<8xf32>, tensor<4x8xf32>
  }
}
